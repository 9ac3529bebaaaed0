//! What CRIU answers, what is in an image of its, and what a restored life is told.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    crac_criu::fuzzing::read(bytes);
});
