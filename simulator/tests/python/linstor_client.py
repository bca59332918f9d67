"""The `python-linstor` client against the simulator: reads and changes snapshots, and meets errors.

Called with the URL, a resource that nobody uses, and one that somebody uses, as JSON.
"""

import json
import sys

import linstor
from linstor import sharedconsts as codes

use = json.loads(sys.argv[1])
url, resource, other = use["url"], use["resource"], use["other"]


def check(so, what):
    if not so:
        sys.exit("it is not so: " + what)


def has(replies, code):
    """Whether one of the replies, not only the first, has this code."""
    low = code & codes.MASK_BITS_CODE
    return any((r.ret_code & codes.MASK_BITS_CODE) == low for r in replies)


with linstor.Linstor(url) as client:
    check(client.controller_version().version.startswith("1."), "it says its version")
    check(len(client.node_list()[0].nodes) == 3, "there are three nodes")

    listed = client.resource_list(filter_by_resources=[resource])[0]
    check({r.name for r in listed.resources} == {resource}, "the resource is listed by name")
    check(not any(s.in_use for s in listed.resource_states), "nobody uses it")
    used = client.resource_list(filter_by_resources=[other])[0]
    check(any(s.in_use for s in used.resource_states), "the other one is in use")

    taken = client.snapshot_create([], resource, "before", async_msg=False)
    check(client.all_api_responses_no_error(taken), "a snapshot is taken: %s" % taken)
    again = client.snapshot_create([], resource, "before", async_msg=False)
    check(has(again, codes.FAIL_EXISTS_SNAPSHOT_DFN) and again[0].is_error(), "a name is taken once")

    both = client.snapshot_create_multi([], [resource, other], "set")
    check(client.all_api_responses_no_error(both), "a set is taken: %s" % both)
    shown = client.snapshot_dfn_list(filter_by_resources=[resource])[0].snapshots
    check(sorted(s.snapshot_name for s in shown) == ["before", "set"], "both are shown")
    check(all(s.flags == ["SUCCESSFUL"] and len(s.snapshots) == 2 for s in shown), "on both nodes")
    check(all(s.snapshots[0].create_datetime for s in shown), "with a time")
    check(shown[0].snapshot_volume_definitions[0].size == 80 << 20, "with a size")

    back = client.snapshot_rollback(resource, "before")
    check(client.all_api_responses_no_error(back), "it goes back: %s" % back)
    refused = client.snapshot_rollback(other, "set")
    check(has(refused, codes.FAIL_IN_USE), "what is in use does not: %s" % refused)
    check(has(client.snapshot_rollback(resource, "never"), codes.FAIL_NOT_FOUND_SNAPSHOT_DFN), "nor to what is not there")

    gone = client.snapshot_delete(resource, "before")
    check(client.all_api_responses_success(gone), "it is deleted: %s" % gone)
    twice = client.snapshot_delete(resource, "before")
    check(has(twice, codes.WARN_NOT_FOUND) and twice[0].is_warning(), "a second time is a warning")
    check([s.snapshot_name for s in client.snapshot_dfn_list(filter_by_resources=[resource])[0].snapshots] == ["set"], "one is left")
    check(client.error_report_list() == [], "and nothing went wrong")

print("all of it held")
