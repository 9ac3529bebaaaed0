//! What a restored life is told: arguments and environment, through a descriptor that `crac restore` puts in the place of an
//! empty file. Pure, but for the reading.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
};

const MAGIC: &[u8] = b"crac-criu handover 1\n";

/// The contents of the descriptor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Handover {
    /// Program name first; empty if none were given.
    pub(crate) args: Vec<OsString>,
    pub(crate) env: Vec<(OsString, OsString)>,
    /// The process id of the command that restored it, with which this life ends; 0 if there is none.
    pub(crate) command: u32,
}

impl Handover {
    /// The magic, three numbers, then every text with a NUL behind it.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for number in [self.args.len() as u64, self.env.len() as u64, self.command.into()] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        let texts = self.args.iter().chain(self.env.iter().flat_map(|(name, value)| [name, value]));
        for text in texts {
            // The kernel ends arguments and variables with a NUL, so that none holds one.
            bytes.extend(text.as_bytes().iter().filter(|byte| **byte != 0));
            bytes.push(0);
        }
        bytes
    }

    /// `None` if `bytes` are none, as in the life that was captured: there the file is empty.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (numbers, texts) = bytes.strip_prefix(MAGIC)?.split_at_checked(24)?;
        let number = |at: usize| numbers.get(8 * at..)?.first_chunk().map(|number| u64::from_le_bytes(*number));
        let (args, env, command) = (number(0)?, number(1)?, u32::try_from(number(2)?).ok()?);
        let texts = texts.strip_suffix(&[0]).map(|texts| texts.split(|byte| *byte == 0)).into_iter().flatten();
        let texts: Vec<OsString> = texts.map(|text| OsString::from_vec(text.to_vec())).collect();
        let (args, env) = texts
            .split_at_checked(usize::try_from(args).ok()?)
            .filter(|(_, rest)| env.checked_mul(2) == Some(rest.len() as u64))?;
        let env = env.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
        Some(Self { args: args.to_vec(), env, command })
    }
}

/// A path as CRIU names it among inherited descriptors: without the slash at its beginning.
pub(crate) fn key(path: &OsStr) -> String {
    let text = String::from_utf8_lossy(path.as_bytes()).into_owned();
    text.strip_prefix('/').unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Handover {
        let not_text = OsString::from_vec(vec![0xff, b'x']);
        Handover { args: vec!["orders".into(), String::new().into()], env: vec![("A".into(), not_text)], command: 4711 }
    }

    #[test]
    fn every_text_arrives_as_it_was() {
        for handover in [sample(), Handover::default(), Handover { args: vec!["".into()], ..Handover::default() }] {
            assert_eq!(Handover::decode(&handover.encode()), Some(handover));
        }
    }

    #[test]
    fn an_empty_file_and_a_truncated_one_are_none() {
        // A count that is too large for arithmetic was once multiplied all the same.
        let boundless = [MAGIC, &[0; 8], &[0xff; 8], &[0; 8]].concat();
        assert_eq!(Handover::decode(&boundless), None);
        assert_eq!(Handover::decode(b""), None);
        let whole = sample().encode();
        for bytes in 0..whole.len() {
            assert_eq!(Handover::decode(&whole[..bytes]), None, "{bytes} bytes");
        }
    }
}
