// The process that holds a pod's namespaces.
module poolkeeper.io/e2e/pause

go 1.24.0
