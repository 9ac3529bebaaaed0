//! Messages and exit: fixed bytes to standard error.

use crate::{
    layout::{EXIT_FAILED, Step},
    sys::{self, Errno},
};

/// A decimal number without a heap.
pub struct Decimal {
    digits: [u8; 20],
    at: usize,
}

impl Decimal {
    pub fn new(mut number: u64) -> Self {
        let mut decimal = Self { digits: [b'0'; 20], at: 20 };
        while decimal.at > 0 {
            decimal.at -= 1;
            if let Some(digit) = decimal.digits.get_mut(decimal.at) {
                *digit = b'0' + (number % 10) as u8;
            }
            number /= 10;
            if number == 0 {
                break;
            }
        }
        decimal
    }

    pub fn bytes(&self) -> &[u8] {
        self.digits.get(self.at..).unwrap_or_default()
    }
}

/// Writes one line to standard error: `crac: cannot restore: ` and the parts.
pub fn say(parts: &[&[u8]]) {
    let mut line = [0_u8; 512];
    let mut len = 0;
    for part in [&b"crac: cannot restore: "[..]].iter().chain(parts).chain([&&b"\n"[..]].iter().copied()) {
        for byte in *part {
            if let Some(at) = line.get_mut(len) {
                *at = *byte;
                len += 1;
            }
        }
    }
    // Nothing can be done if nobody listens.
    let _ = crate::syscall!(sys::SYS_WRITE, 2, line.as_ptr(), len);
}

/// Ends the process with a message.
pub fn exit(status: i32, parts: &[&[u8]]) -> ! {
    say(parts);
    end(status)
}

/// Ends the process.
pub fn end(status: i32) -> ! {
    loop {
        let _ = crate::syscall!(sys::SYS_EXIT_GROUP, status);
    }
}

/// Ends the process because `what` failed in `step`, behind the point of no return.
#[cold]
pub fn fail(step: Step, what: &[u8], errno: Errno) -> ! {
    let (number, errno) = (Decimal::new(step as u64 + 1), Decimal::new(errno.0 as u64));
    exit(EXIT_FAILED, &[b"step ", number.bytes(), b", ", step.name().as_bytes(), b": ", what, b": errno ", errno.bytes()])
}

/// As [`fail`], naming the number of the thing.
#[cold]
pub fn fail_on(step: Step, what: &[u8], which: u64, errno: Errno) -> ! {
    let (number, errno, which) = (Decimal::new(step as u64 + 1), Decimal::new(errno.0 as u64), Decimal::new(which));
    let parts: [&[u8]; 9] =
        [b"step ", number.bytes(), b", ", step.name().as_bytes(), b": ", what, b" ", which.bytes(), b": errno "];
    let mut all: [&[u8]; 10] = [b""; 10];
    for (to, from) in all.iter_mut().zip(parts.iter().chain([&errno.bytes()])) {
        *to = from;
    }
    exit(EXIT_FAILED, &all)
}
