#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = backstay_tests::decoders::plan(text);
});
