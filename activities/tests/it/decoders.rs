//! A moment of what `fuzz/` does for hours: what the real systems answer, cut and bent in places.

use backstay_activities::decoders;
use proptest::prelude::*;

const ANSWERS: &[&str] = &[
    r#"{"queryasyncjobresultresponse":{"jobid":"j","jobstatus":1,"jobresultcode":0,"jobresult":{"volume":{"id":"v"}}}}"#,
    r#"{"listvolumesresponse":{"count":1,"volume":[{"id":7,"type":"ROOT","size":"1","deviceid":0,"tags":[{"key":"k"}]}]}}"#,
    r#"{"attachvolumeresponse":{"uuidList":[],"errorcode":431,"cserrorcode":4350,"errortext":"no"}}"#,
    r#"{"deployvirtualmachineresponse":{"id":"v","jobid":"j"}}"#,
    r#"{"id":"o","type":"attach","status":"completed","volume_id":"","response":{"volume_id":"v","device_path":"/dev/vdb"}}"#,
    r#"{"exports":[{"volume_id":"v","export_name":"e"}],"count":1}"#,
    r#"{"volume_uuid":"v","vm_id":null,"device_path":"remote-vm-m","size":0}"#,
    r#"{"job_id":"j","status":"Streaming","percentage":41.5,"disk_progresses":[{"disk_id":"d","percent":"3%"}],"last_error":{}}"#,
    r#"{"success":true,"previous_state":"poweredOn","new_state":"poweredOff","shutdown_method":"graceful"}"#,
    r#"[{"ret_code":-4611686018409823740,"message":"m","cause":"c","obj_refs":{"a":"b"}},{"ret_code":17563649,"message":"m"}]"#,
    r#"[{"name":"s","resource_name":"r","nodes":["a"],"flags":["SUCCESSFUL"],"snapshots":[{"node_name":"a","flags":[]}]}]"#,
    "virt-v2v-in-place: error: inspection could not\ndetect the source guest: BitLocker",
    "virt-v2v-in-place\ninput:disk\nblock-driver-option\n",
];

const WORDS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "\\",
    "\n",
    " ",
    "null",
    "true",
    "\"true\"",
    "-1",
    "0",
    "2",
    "\"2\"",
    "1e400",
    "0.5",
    "9223372036854775808",
    "-9223372036854775808",
    "18446744073709551616",
    "\\u0000",
    "\\ud800",
    "\u{0}",
    "é",
    "İ",
    "ﬁ",
    "errorcode",
    "jobstatus",
    "jobresult",
    "count",
    "status",
    "completed",
    "poweredOff",
    ": error:",
    "<html>",
];

fn all(bytes: &[u8]) {
    decoders::cloudstack(bytes);
    decoders::daemon(bytes);
    decoders::vma(bytes);
    decoders::linstor(bytes);
    decoders::v2v(bytes);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn answers_cut_and_bent_are_read_or_refused(
        answer in prop::sample::select(ANSWERS),
        bends in prop::collection::vec((any::<prop::sample::Index>(), 0usize..6, prop::sample::select(WORDS)), 0..6),
    ) {
        let mut bytes = answer.as_bytes().to_vec();
        for (at, gone, put) in bends {
            let at = at.index(bytes.len() + 1);
            let end = (at + gone).min(bytes.len());
            bytes.splice(at..end, put.bytes());
        }
        all(&bytes);
    }

    #[test]
    fn bytes_of_anything_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        all(&bytes);
    }
}

#[test]
fn depth_and_length_do_no_harm() {
    for text in [
        "[".repeat(1 << 20),
        "{\"a\":".repeat(1 << 18),
        "9".repeat(1 << 16),
        format!("\"{}\"", "\\u0041".repeat(1 << 16)),
    ] {
        all(text.as_bytes());
    }
}
