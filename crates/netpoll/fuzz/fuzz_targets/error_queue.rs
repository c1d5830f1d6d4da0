#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| netpoll::fuzzing::error_queue(data));
