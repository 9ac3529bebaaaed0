//! Policies come from other people: reading them may fail, never panic, and what was read prints back.
#![no_main]

use crac_core::Policy;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(policy) = text.parse::<Policy>() {
        assert_eq!(policy.to_string().parse::<Policy>().as_ref(), Ok(&policy));
    }
});
