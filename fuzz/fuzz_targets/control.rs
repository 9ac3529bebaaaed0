//! The control socket's words, both ways and line by line: what was read is written as it was, and read again.
#![no_main]

use crac_core::control::{ControlReply, ControlRequest};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for line in bytes.split(|byte| *byte == b'\n') {
        if let Ok(request) = serde_json::from_slice::<ControlRequest>(line) {
            let again = serde_json::to_vec(&request).expect("a request is written as it was read");
            assert_eq!(serde_json::from_slice::<ControlRequest>(&again).expect("and read again"), request);
        }
        // Replies hold reports, rounds and states; they are compared as they are written.
        if let Ok(reply) = serde_json::from_slice::<ControlReply>(line) {
            let text = serde_json::to_string(&reply).expect("a reply is written as it was read");
            let again: ControlReply = serde_json::from_str(&text).expect("and read again");
            assert_eq!(serde_json::to_string(&again).expect("and written again"), text);
        }
    }
});
