{{/* The name of everything in this release. Helm allows 53 characters for a release, so nothing need be cut. */}}
{{- define "poolkeeper.fullname" -}}
{{- if contains "poolkeeper" .Release.Name -}}
{{- .Release.Name -}}
{{- else -}}
{{- printf "%s-poolkeeper" .Release.Name -}}
{{- end -}}
{{- end -}}

{{- define "poolkeeper.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (include "poolkeeper.fullname" .) -}}
{{- end -}}

{{- define "poolkeeper.image" -}}
{{- $image := printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- .Values.image.digest | empty | ternary $image (printf "%s@%s" .Values.image.repository .Values.image.digest) -}}
{{- end -}}

{{/* The Service, the MutatingWebhookConfiguration, and the Secret with the key of the operator's own authority. */}}
{{- define "poolkeeper.webhook" -}}
{{- printf "%s-webhook" (include "poolkeeper.fullname" .) -}}
{{- end -}}

{{/* The Secret with a certificate that others provide; empty where the operator makes its own. */}}
{{- define "poolkeeper.webhookCertificate" -}}
{{- $certificate := .Values.webhook.certificate -}}
{{- if eq $certificate.source "CertManager" -}}
{{- printf "%s-tls" (include "poolkeeper.webhook" .) -}}
{{- else if eq $certificate.source "Secret" -}}
{{- $certificate.secretName -}}
{{- end -}}
{{- end -}}

{{/* Labels of every object. */}}
{{- define "poolkeeper.labels" -}}
app.kubernetes.io/name: poolkeeper
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/* What selects the operator's pods. The name and the component are fixed: the poolers' NetworkPolicies admit them. */}}
{{- define "poolkeeper.selectorLabels" -}}
app.kubernetes.io/name: poolkeeper
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: operator
{{- end -}}

{{/* "true" where the cluster assigns the pods their users. */}}
{{- define "poolkeeper.assignedUsers" -}}
{{- $openshift := .Capabilities.APIVersions.Has "security.openshift.io/v1" -}}
{{- or (eq .Values.podUsers "Assigned") (and (eq .Values.podUsers "Auto") $openshift) -}}
{{- end -}}

{{/* Pod Security "restricted", at the level of the pod and of the container. */}}
{{- define "poolkeeper.podSecurityContext" -}}
runAsNonRoot: true
{{- if eq (include "poolkeeper.assignedUsers" .) "false" }}
runAsUser: 65532
runAsGroup: 65532
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "poolkeeper.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* What the operator may do in each namespace it works in: a ClusterRole's rules, or those of a Role per namespace. */}}
{{- define "poolkeeper.workRules" -}}
# The resource itself. "patch" is for the finalizer in its metadata; the operator never writes spec.
- apiGroups: [poolkeeper.io]
  resources: [pooleddatabases]
  verbs: [get, list, watch, patch]
- apiGroups: [poolkeeper.io]
  resources: [pooleddatabases/status]
  verbs: [patch]
# The children.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
# Source Secrets are read and labelled, pooler and consumer Secrets are written. RBAC knows neither labels nor name
# patterns, so this right covers every Secret in scope: docs/security.md says what that means.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch, create, patch, delete]
# Pooler pods: their addresses and readiness, and the annotation that makes the kubelet refresh their configuration.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [pods/status]
  verbs: [patch]
# A pooler pod through which no statement gets, as its PodDisruptionBudget allows.
- apiGroups: [""]
  resources: [pods/eviction]
  verbs: [create]
# Where the Service that an upstream names leads to: a failover shows nowhere else.
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- if .Values.keeper.restartWorkloads }}
# The workloads of apps, to restart them for their keepers. (The right on Deployments is above.)
- apiGroups: [apps]
  resources: [statefulsets, daemonsets]
  verbs: [get, patch]
- apiGroups: [apps]
  resources: [replicasets]
  verbs: [get]
{{- end }}
{{- end -}}

{{/* A pod that runs one script of the chart in the operator's image and ends: root, name, account, script (a path). */}}
{{- define "poolkeeper.scriptPodSpec" -}}
restartPolicy: Never
serviceAccountName: {{ .account }}
automountServiceAccountToken: true
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "poolkeeper.podSecurityContext" .root | nindent 2 }}
containers:
- name: {{ .name }}
  image: {{ include "poolkeeper.image" .root | quote }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command: [python, -c]
  args:
  - |
    {{- .root.Files.Get .script | nindent 4 }}
  env:
  - name: POOLKEEPER_NAMESPACE
    value: {{ .root.Release.Namespace | quote }}
  - name: POOLKEEPER_LEASE
    value: {{ include "poolkeeper.fullname" .root | quote }}
  - name: POOLKEEPER_WATCH_NAMESPACES
    value: {{ join "," .root.Values.watchNamespaces | quote }}
  resources:
    requests:
      cpu: 10m
      memory: 64Mi
    limits:
      memory: 256Mi
  securityContext:
    {{- include "poolkeeper.containerSecurityContext" .root | nindent 4 }}
  # For what Python and the client library put down while they run.
  volumeMounts:
  - name: tmp
    mountPath: /tmp
{{- with .root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumes:
- name: tmp
  emptyDir:
    sizeLimit: 16Mi
{{- end -}}

{{/* Annotations of what exists during an uninstallation only, with its weight in their order. */}}
{{- define "poolkeeper.uninstallHook" -}}
helm.sh/hook: post-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}
