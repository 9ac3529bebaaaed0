//! What an image has to be before it is restored, beyond fitting this host.

use std::{path::PathBuf, time::Duration};

use crate::duration;

/// Demands on an image, as options of a verb.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Demands {
    /// The image must be signed with the secret half of this Ed25519 public key (PEM); every byte of it is read.
    #[arg(long, value_name = "FILE")]
    pub(crate) verify_key: Option<PathBuf>,

    /// Where the signature is. Default: the name of the image and `.sig`.
    #[arg(long, value_name = "FILE", requires = "verify_key")]
    pub(crate) signature: Option<PathBuf>,

    /// The image must be of this build of the service, as `crac inspect` shows it.
    #[arg(long, value_name = "BUILD")]
    pub(crate) require_build_id: Option<String>,

    /// The image must not be older than this, nor from the future.
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    pub(crate) max_age: Option<Duration>,

    /// A file with age identities to decrypt the image with; it is decrypted in memory.
    #[arg(long = "identity", value_name = "FILE")]
    pub(crate) identities: Vec<PathBuf>,
}

/// How far the clock of the host of the capture may have been ahead of ours.
const CLOCKS_APART: Duration = Duration::from_secs(300);

impl Demands {
    /// What is wrong with an image of the build `build_id`, captured `age` ago; an error stands for so long from now.
    pub(crate) fn unmet(&self, build_id: &str, age: Result<Duration, Duration>) -> Vec<String> {
        let mut unmet = Vec::new();
        if let Some(required) = self.require_build_id.as_deref().filter(|required| *required != build_id) {
            unmet.push(format!("the image is of build {build_id}, and build {required} is required"));
        }
        match (self.max_age, age) {
            (Some(max), Ok(age)) if age > max => {
                unmet.push(format!("the image is {} s old, and may be {} s old", age.as_secs(), max.as_secs()));
            }
            (Some(_), Err(ahead)) if ahead > CLOCKS_APART => {
                unmet.push(format!("the image is from {} s in the future by the clock of this host", ahead.as_secs()));
            }
            _ => {}
        }
        unmet
    }

    /// Whether anything is asked that only images of the native engine can show.
    pub(crate) fn are_for_native_images(&self) -> bool {
        let Self { verify_key, signature: _, require_build_id, max_age, identities } = self;
        verify_key.is_some() || require_build_id.is_some() || max_age.is_some() || !identities.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_and_build_are_compared() {
        let s = Duration::from_secs;
        let demands = Demands { require_build_id: Some("ab".into()), max_age: Some(s(60)), ..Demands::default() };
        assert_eq!(demands.unmet("ab", Ok(s(60))), [""; 0]);
        assert_eq!(demands.unmet("cd", Ok(s(61))).len(), 2);
        assert!(demands.unmet("ab", Err(s(301)))[0].contains("future"));
        assert!(demands.unmet("ab", Err(s(299))).is_empty(), "clocks are never quite the same");
        assert!(Demands::default().unmet("ab", Err(s(9999))).is_empty());
        assert!(!Demands::default().are_for_native_images() && demands.are_for_native_images());
    }
}
