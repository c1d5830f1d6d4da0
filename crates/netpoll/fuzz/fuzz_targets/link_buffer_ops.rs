#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| netpoll::fuzzing::link_buffer_ops(data));
