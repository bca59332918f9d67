"""The `cs` client against the simulator: reads, changes things by async jobs, and meets errors.

Called with the endpoint, the key, the secret, and the ids of what to use, as JSON.
"""

import json
import sys

from cs import CloudStack, CloudStackApiException

use = json.loads(sys.argv[1])


def client(method, **more):
    return CloudStack(
        endpoint=use["endpoint"], key=use["key"], secret=use["secret"], method=method, poll_interval=0.02, **more
    )


def fails(what, code):
    """A refused call and a failed job say the same: a code and a text."""
    try:
        what()
    except CloudStackApiException as error:
        assert error.error["errorcode"] == code and error.error["errortext"], (code, error.error)
    else:
        raise AssertionError(f"{code} was expected, and it went well")


for method in ("get", "post"):
    for expiration in (600, -1):
        cs = client(method, expiration=expiration)
        zones = cs.listZones()
        assert zones["zone"][0]["name"] == "zone-1", zones
        assert cs.listVirtualMachines(name="nobody has this name") == {}
        assert cs.listVirtualMachines(name="nobody has this name", fetch_list=True) == []
        special = cs.listVirtualMachines(keyword="a b+c*/é", name="x")
        assert special == {}, special

cs = client("post")
volumes = cs.listVolumes(fetch_list=True, pagesize=3)
assert len(volumes) == cs.listVolumes()["count"], volumes
assert len({volume["id"] for volume in volumes}) == len(volumes)

stranger = CloudStack(endpoint=use["endpoint"], key=use["key"], secret="wrong", method="post")
fails(stranger.listZones, 401)

# A job that is not waited for, and one that is.
job = cs.detachVolume(id=use["volume"])
assert set(job) == {"jobid"}, job
while True:
    told = cs.queryAsyncJobResult(jobid=job["jobid"])
    if told["jobstatus"] != 0:
        break
assert told["jobstatus"] == 1 and told["jobresult"]["volume"]["id"] == use["volume"], told

vm = cs.deployVirtualMachine(
    zoneid=use["zone"],
    serviceofferingid=use["offering"],
    templateid=use["template"],
    networkids=[use["network"]],
    name="made-by-cs",
    startvm=False,
    details=[{"cpuNumber": 2, "memory": 1024}],
    fetch_result=True,
)["virtualmachine"]
assert vm["state"] == "Stopped" and vm["cpunumber"] == 2 and vm["nic"][0]["isdefault"], vm

root = cs.listVolumes(virtualmachineid=vm["id"], type="ROOT")["volume"][0]
fails(lambda: cs.attachVolume(id=use["volume"], virtualmachineid=vm["id"], deviceid=0, fetch_result=True), 431)
cs.detachVolume(id=root["id"], fetch_result=True)
assert cs.deleteVolume(id=root["id"]) == {"success": True}
fails(lambda: cs.deleteVolume(id=root["id"]), 431)

snapshot = cs.createSnapshot(volumeid=use["volume"], name="by cs", fetch_result=True)["snapshot"]
assert snapshot["state"] == "BackedUp", snapshot
volume = cs.attachVolume(id=use["volume"], virtualmachineid=vm["id"], deviceid=0, fetch_result=True)["volume"]
assert (volume["deviceid"], volume["type"], volume["virtualmachineid"]) == (0, "ROOT", vm["id"]), volume

tags = [{"key": "backstay-run", "value": "by cs"}]
made = cs.createTags(resourceids=[vm["id"]], resourcetype="UserVm", tags=tags, fetch_result=True)
assert made["success"], made
found = cs.listVirtualMachines(tags=tags)
assert [one["id"] for one in found["virtualmachine"]] == [vm["id"]], found

assert cs.startVirtualMachine(id=vm["id"], fetch_result=True)["virtualmachine"]["state"] == "Running"
fails(lambda: cs.startVirtualMachine(id=vm["id"], fetch_result=True), 431)
fails(lambda: cs.createSnapshot(volumeid=use["volume"]), 530)
fails(lambda: cs.detachVolume(id=use["volume"], fetch_result=True), 431)
assert cs.stopVirtualMachine(id=vm["id"], fetch_result=True)["virtualmachine"]["state"] == "Stopped"
cs.revertSnapshot(id=snapshot["id"], fetch_result=True)
whole = cs.createVMSnapshot(virtualmachineid=vm["id"], name="whole", fetch_result=True)["vmsnapshot"]
assert whole["state"] == "Ready", whole
fails(lambda: cs.detachVolume(id=use["volume"], fetch_result=True), 431)
cs.deleteVMSnapshot(vmsnapshotid=whole["id"], fetch_result=True)
cs.detachVolume(id=use["volume"], fetch_result=True)
cs.destroyVirtualMachine(id=vm["id"], expunge=True, fetch_result=True)
assert cs.listVirtualMachines(id=vm["id"]) == {}
cs.attachVolume(id=use["volume"], virtualmachineid=use["oma"], fetch_result=True)
cs.deleteSnapshot(id=snapshot["id"], fetch_result=True)
print("all of it held")
