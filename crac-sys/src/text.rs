//! Kernel data for people: socket addresses and bytes that should be text. Formatting allocates nothing.

use core::{fmt, net::SocketAddr};

/// A socket address for people, from its `sockaddr` bytes.
#[derive(Debug, Clone, Copy)]
pub struct Address<'a>(pub &'a [u8]);

impl Address<'_> {
    /// The address of an internet socket.
    pub fn internet(&self) -> Option<SocketAddr> {
        let port = u16::from_be_bytes(*self.0.get(2..)?.first_chunk()?);
        match i32::from(family(self.0)?) {
            libc::AF_INET => Some((*self.0.get(4..)?.first_chunk::<4>()?, port).into()),
            libc::AF_INET6 => Some((*self.0.get(8..)?.first_chunk::<16>()?, port).into()),
            _ => None,
        }
    }

    /// The path of a Unix socket, if it is bound to one: without the NUL behind it.
    pub fn path(&self) -> Option<&[u8]> {
        let name = self.0.get(2..).filter(|name| name.first().is_some_and(|byte| *byte != 0))?;
        (i32::from(family(self.0)?) == libc::AF_UNIX).then(|| name.split(|byte| *byte == 0).next()).flatten()
    }
}

/// The address family of `sockaddr` bytes.
fn family(address: &[u8]) -> Option<u16> {
    address.first_chunk().map(|family| u16::from_ne_bytes(*family))
}

impl fmt::Display for Address<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(address) = self.internet() {
            return write!(f, "{address}");
        }
        match self.0.get(2..) {
            None | Some([]) => f.write_str("(unnamed)"),
            Some([0, name @ ..]) => write!(f, "@{}", Bytes(name)),
            Some(name) => write!(f, "{}", Bytes(name.split(|byte| *byte == 0).next().unwrap_or_default())),
        }
    }
}

/// Bytes that should be text: what is not printable comes out escaped.
#[derive(Debug, Clone, Copy)]
pub struct Bytes<'a>(pub &'a [u8]);

impl fmt::Display for Bytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.utf8_chunks().try_for_each(|chunk| {
            chunk.valid().chars().try_for_each(|character| {
                if character.is_control() { write!(f, "{}", character.escape_default()) } else { write!(f, "{character}") }
            })?;
            chunk.invalid().iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_like_addresses() {
        let mut v4 = vec![2, 0, 0x1f, 0x90, 127, 0, 0, 1];
        v4.extend([0; 8]);
        assert_eq!(Address(&v4).to_string(), "127.0.0.1:8080");
        let mut v6 = vec![10, 0, 0x1f, 0x90, 0, 0, 0, 0];
        v6.extend([0; 15]);
        v6.extend([1, 0, 0, 0, 0]);
        assert_eq!(Address(&v6).to_string(), "[::1]:8080");
        assert_eq!(Address(b"\x01\0/run/a\0").to_string(), "/run/a");
        assert_eq!(Address(b"\x01\0/run/a\0").path(), Some(&b"/run/a"[..]));
        assert_eq!(Address(b"\x01\0\0abstract").to_string(), "@abstract");
        assert_eq!(Address(b"\x01\0\0abstract").path(), None);
        assert_eq!(Address(b"\x01\0").to_string(), "(unnamed)");
        assert_eq!(Address(b"").to_string(), "(unnamed)");
    }

    #[test]
    fn odd_bytes_are_escaped() {
        assert_eq!(Bytes(b"a\nb\xff").to_string(), "a\\nb\\xff");
    }
}
