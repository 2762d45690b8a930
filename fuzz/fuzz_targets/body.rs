#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringspan::edge::fuzz::body(data));
