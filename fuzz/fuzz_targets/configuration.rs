#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    backstay_server::decoders::configuration(text);
});
