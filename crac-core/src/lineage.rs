//! Who this process is: image, instance, generation.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

macro_rules! identity {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = NotAnIdentity;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let number = (text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit()))
                    .then(|| u128::from_str_radix(text, 16).ok())
                    .flatten()
                    .ok_or_else(|| NotAnIdentity(text.to_owned()))?;
                Ok(Self(number.to_be_bytes()))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

identity! {
    /// Names one image: 128 random bits, drawn when the capture begins.
    ImageId
}

identity! {
    /// Names one life of a process: 128 random bits, fresh at start and after every restore, different in every clone.
    InstanceId
}

/// Text that is not 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an identity of 32 hexadecimal digits")]
pub struct NotAnIdentity(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_print_and_parse_back() {
        let id = ImageId([0xab; 16]);
        assert_eq!(id.to_string().parse::<ImageId>().unwrap(), id);
        assert!("+bababababababababababababababab".parse::<ImageId>().is_err());
        assert!("ab".parse::<InstanceId>().is_err());
    }
}
