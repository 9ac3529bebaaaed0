//! What all parsers share: lines, fields, numbers.

use core::fmt;

/// Text of `/proc` that is not as documented; the kernel is newer than this program, or the read was cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed {
    /// Which file or line was being read: `maps`, `fdinfo epoll target`.
    pub what: &'static str,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot understand the kernel's text for {}", self.what)
    }
}

impl core::error::Error for Malformed {}

/// The lines of `text` without their ends; a last line without an end counts.
pub fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
}

/// The number that a file name of `/proc/PID/fd` or `/proc/PID/task` stands for.
///
/// `None` for `.`, `..`, and whatever is no plain decimal number up to `i32::MAX`.
pub fn decimal_name(name: &[u8]) -> Option<i32> {
    number(name, 10).and_then(|value| i32::try_from(value).ok())
}

/// A number of `radix` without sign or prefix, all of `digits`; `None` if empty, foreign or too large.
pub(super) fn number(digits: &[u8], radix: u8) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |sum, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            _ => return None,
        };
        if digit >= radix {
            return None;
        }
        sum.checked_mul(u64::from(radix))?.checked_add(u64::from(digit))
    })
}

/// As [`number`], then narrowed.
pub(super) fn narrow<T: TryFrom<u64>>(digits: &[u8], radix: u8) -> Option<T> {
    number(digits, radix).and_then(|value| T::try_from(value).ok())
}

/// A decimal number that may have a minus sign.
pub(super) fn signed(digits: &[u8]) -> Option<i64> {
    match digits.split_first() {
        Some((b'-', rest)) => number(rest, 10).and_then(|value| 0i64.checked_sub_unsigned(value)),
        _ => narrow(digits, 10),
    }
}

/// The pieces of a line between spaces and tabs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn of(line: &'a [u8]) -> Self {
        Self(line)
    }

    /// What is left, without the blanks before it.
    pub(super) fn rest(self) -> &'a [u8] {
        self.0.trim_ascii_start()
    }

    /// The piece behind the next `label` piece, where `label` includes its colon.
    pub(super) fn after(&mut self, label: &[u8]) -> Option<&'a [u8]> {
        while let Some(piece) = self.next() {
            match piece.strip_prefix(label) {
                Some(b"") => return self.next(),
                Some(value) => return Some(value),
                None => {}
            }
        }
        None
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let text = self.0.trim_ascii_start();
        if text.is_empty() {
            self.0 = text;
            return None;
        }
        let end = text.iter().position(u8::is_ascii_whitespace).unwrap_or(text.len());
        let (piece, rest) = text.split_at_checked(end)?;
        self.0 = rest;
        Some(piece)
    }
}

/// `text` around its first `separator`.
pub(super) fn split_once(text: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|byte| *byte == separator)?;
    Some((text.get(..at)?, text.get(at + 1..)?))
}

/// A device as the kernel prints it: `MAJOR:MINOR`, both hexadecimal.
pub(super) fn device(text: &[u8]) -> Option<(u32, u32)> {
    let (major, minor) = split_once(text, b':')?;
    Some((narrow(major, 16)?, narrow(minor, 16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_whole_or_nothing() {
        for (text, radix, value) in [
            (&b"0"[..], 10, Some(0)),
            (b"18446744073709551615", 10, Some(u64::MAX)),
            (b"18446744073709551616", 10, None),
            (b"ff", 16, Some(255)),
            (b"ff", 10, None),
            (b"08", 8, None),
            (b"", 10, None),
            (b"+1", 10, None),
            (b" 1", 10, None),
        ] {
            assert_eq!(number(text, radix), value, "{text:?}");
        }
        assert_eq!(signed(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!(signed(b"-9223372036854775809"), None);
        assert_eq!(signed(b"9223372036854775808"), None);
    }

    #[test]
    fn only_plain_numbers_name_descriptors() {
        assert_eq!(decimal_name(b"17"), Some(17));
        for name in [&b"."[..], b"..", b"self", b"-1", b"2147483648"] {
            assert_eq!(decimal_name(name), None);
        }
    }

    #[test]
    fn a_label_may_touch_its_value() {
        let line = b"tfd:        9 events: 80002019  pos:0 ino:5e40";
        let mut fields = Fields::of(line);
        assert_eq!(fields.after(b"events:"), Some(&b"80002019"[..]));
        assert_eq!(fields.after(b"ino:"), Some(&b"5e40"[..]));
        assert_eq!(fields.after(b"sdev:"), None);
    }
}
