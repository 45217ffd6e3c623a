//! Any bytes into the HTTP/1 codec; what has to hold of them is said in `weft_dataplane::http1::fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_dataplane::http1::fuzz::fuzz(data));
