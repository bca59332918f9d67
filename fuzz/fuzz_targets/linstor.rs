#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| backstay_activities::decoders::linstor(bytes));
