import time
from tests.apiserver.operator.site import *
def test_smoke(site, lane):
    op = site.operator(lane.namespaces)
    op.start(); t=time.time()
    lane.apply()
    try:
        lane.synced()
        lane.expect("UpstreamReachable", "True", "Reachable")
    finally:
        print(op.said())
    print(time.time()-t)
    for w in op.gate.writes: print(w)
    time.sleep(1); n=len(op.gate.writes)
    lane.make_pod("p"); time.sleep(2)
    lane.apply(pooler={"replicas":3,"mode":"session","parameters":{"default_pool_size":7}}, consumers=[{"namespace":lane.web}])
    time.sleep(3)
    print("CHANGE")
    for w in op.gate.writes[n:]: print(w)
    n=len(op.gate.writes)
    lane.delete(); time.sleep(1); lane.remove_pod("p")
    time.sleep(1)
    print("DELETE")
    for w in op.gate.writes[n:]: print(w)
    print(op.said())
    print([ (o["kind"],o["metadata"]["name"]) for o in lane.objects()])
    print([ (e["reason"],e["message"]) for e in lane.events()])
    print(lane.writes())
