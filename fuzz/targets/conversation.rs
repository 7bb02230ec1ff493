//! `cargo fuzz run conversation`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::conversation::run(bytes));
