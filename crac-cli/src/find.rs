//! `crac inspect --find-secrets`: where in an image the values of variables and patterns are. What was found is never printed.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use crac_native::image::Image;
use regex::bytes::{Regex, RegexSet};
use serde::Serialize;

/// Variables whose values are looked for without being named: those of the captured process and of this command.
const SECRET_NAMES: [&str; 8] = ["KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "DATABASE_URL", "PRIVATE"];
/// What secrets look like wherever they come from: name and pattern.
const SECRET_PATTERNS: [(&str, &str); 5] = [
    ("private key", r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----"),
    ("age identity", r"AGE-SECRET-KEY-1[0-9A-Z]{58}"),
    ("AWS access key", r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    ("bearer token", r"(?i)\bbearer [a-z0-9._~+/-]{20,}"),
    ("password in a URL", r"\b[a-z][a-z0-9+.-]{2,20}://[^\s/:@\x00-\x20]{1,64}:[^\s/@\x00-\x20]{3,128}@"),
];
/// Values that are shorter are everywhere.
const VALUE_MIN: usize = 6;
/// Bytes that are looked at together; so many more are read with them, for what lies across the border.
const PIECE: usize = 4 << 20;
const OVERLAP: usize = 4096;
/// How many places of one thing are listed.
const PLACES_MAX: usize = 20;

/// Something that is in an image and perhaps should not be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// What it is: a variable, or a pattern.
    pub(crate) what: String,
    /// How often it was found.
    pub(crate) count: usize,
    /// The first places.
    pub(crate) places: Vec<Place>,
}

/// Where a finding begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Place {
    /// In the image file.
    pub(crate) file_offset: u64,
    /// In the captured process; nothing for what crac itself has written down.
    pub(crate) address: Option<u64>,
    /// What is there: `heap`, `stack`, `tables` ...
    pub(crate) region: String,
}

/// What is looked for.
pub(crate) struct Wanted {
    names: Vec<String>,
    patterns: Vec<Regex>,
    any: RegexSet,
}

impl Wanted {
    /// The usual, the values of the variables `variables` of this command, and `patterns`.
    ///
    /// # Errors
    ///
    /// The first pattern that is none, or variable that is not set.
    pub(crate) fn new(variables: &[String], patterns: &[String]) -> Result<Self, String> {
        let mut wanted: Vec<(String, String)> = Vec::new();
        for (name, pattern) in SECRET_PATTERNS {
            wanted.push((name.to_owned(), pattern.to_owned()));
        }
        for pattern in patterns {
            wanted.push((format!("pattern {pattern}"), pattern.clone()));
        }
        for name in variables {
            let value = std::env::var(name).map_err(|error| format!("cannot look for the value of {name}: {error}"))?;
            wanted.push((format!("variable {name}"), regex::escape(&value)));
        }
        let named = |name: &str| !variables.iter().any(|other| other == name);
        for (name, value) in std::env::vars().filter(|(name, value)| named(name) && is_secret(name, value)) {
            wanted.push((format!("variable {name}"), regex::escape(&value)));
        }
        Self::of(wanted)
    }

    fn of(wanted: Vec<(String, String)>) -> Result<Self, String> {
        let (names, patterns): (Vec<_>, Vec<_>) = wanted.into_iter().unzip();
        let any = RegexSet::new(&patterns).map_err(|error| error.to_string())?;
        let patterns = patterns.iter().map(|pattern| Regex::new(pattern)).collect::<Result<_, _>>();
        Ok(Self { names, patterns: patterns.map_err(|error| error.to_string())?, any })
    }

    /// Looks through all of an image file; also for the values of the captured process's own variables.
    ///
    /// # Errors
    ///
    /// As reading the file.
    pub(crate) fn find(self, file: &File, image: &Image) -> io::Result<Vec<Finding>> {
        let own = own_variables(file, image)?;
        let mut all: Vec<(String, String)> =
            self.names.into_iter().zip(self.patterns.iter().map(|pattern| pattern.as_str().to_owned())).collect();
        for (name, value) in own {
            let pattern = regex::escape(&value);
            if !all.iter().any(|(_, known)| *known == pattern) {
                all.push((format!("variable {name} of the service"), pattern));
            }
        }
        let wanted = Self::of(all).map_err(io::Error::other)?;
        let mut findings: Vec<Finding> =
            wanted.names.iter().map(|name| Finding { what: name.clone(), count: 0, places: Vec::new() }).collect();
        let tables = (image.metadata_offset(), image.metadata_bytes());
        wanted.scan(file, tables.0, tables.1, &mut findings, &|_| (None, "tables".to_owned()))?;
        let maps = image.maps();
        for (address, offset, bytes) in image.stretches() {
            let map = maps.iter().find(|map| map.start <= address && address < map.end);
            let region =
                map.map_or_else(String::new, |map| map.label.clone().unwrap_or_else(|| format!("{} memory", map.protection)));
            wanted.scan(file, offset, bytes, &mut findings, &|at| (Some(address + (at - offset)), region.clone()))?;
        }
        findings.retain(|finding| finding.count > 0);
        Ok(findings)
    }

    fn scan(
        &self,
        file: &File,
        offset: u64,
        bytes: u64,
        findings: &mut [Finding],
        place: &dyn Fn(u64) -> (Option<u64>, String),
    ) -> io::Result<()> {
        let mut buffer = vec![0; PIECE + OVERLAP];
        let mut done = 0;
        while done < bytes {
            let room = usize::try_from(bytes - done).unwrap_or(usize::MAX).min(buffer.len());
            let Some(part) = buffer.get_mut(..room) else { break };
            file.read_exact_at(part, offset + done)?;
            for number in self.any.matches(part) {
                let (Some(pattern), Some(finding)) = (self.patterns.get(number), findings.get_mut(number)) else { continue };
                // What begins in the overlap is found again with the next piece.
                for found in pattern.find_iter(part).filter(|found| found.start() < PIECE) {
                    finding.count += 1;
                    if finding.places.len() < PLACES_MAX {
                        let file_offset = offset + done + found.start() as u64;
                        let (address, region) = place(file_offset);
                        finding.places.push(Place { file_offset, address, region });
                    }
                }
            }
            done += PIECE as u64;
        }
        Ok(())
    }
}

/// Whether a variable's value is likely to be a secret.
fn is_secret(name: &str, value: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    value.len() >= VALUE_MIN && !Path::new(value).is_absolute() && SECRET_NAMES.iter().any(|part| upper.contains(part))
}

/// Variables of the captured process that are likely to be secret, as its start found them.
fn own_variables(file: &File, image: &Image) -> io::Result<Vec<(String, String)>> {
    let (start, end) = image.environment();
    let mut block = vec![0; end.saturating_sub(start).min(8 << 20) as usize];
    let read = image.read_memory(file, start, &mut block)?;
    let block = block.get(..read).unwrap_or_default();
    let variables = block.split(|byte| *byte == 0).filter_map(|variable| std::str::from_utf8(variable).ok()?.split_once('='));
    let secret = variables.filter(|(name, value)| is_secret(name, value));
    Ok(secret.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_across_a_border_is_found_once() {
        let mut bytes = vec![b'x'; PIECE + 100];
        bytes[PIECE - 3..PIECE + 3].copy_from_slice(b"canary");
        bytes[PIECE + 50..PIECE + 56].copy_from_slice(b"canary");
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, &bytes).unwrap();
        let wanted = Wanted::of(vec![("a bird".into(), "canary".into()), ("nothing".into(), "dodo".into())]).unwrap();
        let mut findings = vec![Finding { what: String::new(), count: 0, places: Vec::new() }; 2];
        wanted.scan(&file, 0, bytes.len() as u64, &mut findings, &|_| (None, String::new())).unwrap();
        assert_eq!((findings[0].count, findings[1].count), (2, 0));
        assert_eq!(findings[0].places[0].file_offset, PIECE as u64 - 3);
    }

    #[test]
    fn secrets_are_told_by_their_names_and_looks() {
        assert!(is_secret("DB_PASSWORD", "hunter22") && is_secret("api_token", "0123456789"));
        assert!(
            !is_secret("DB_PASSWORD", "x")
                && !is_secret("SSH_KEY_FILE", "/etc/keys/id")
                && !is_secret("HOME_TOWN", "Springfield")
        );
        let wanted = Wanted::new(&[], &["zebra[0-9]+".into()]).unwrap();
        for (text, name) in [
            ("-----BEGIN OPENSSH PRIVATE KEY-----", "private key"),
            ("postgres://app:hunter2@db/orders", "password in a URL"),
            ("Authorization: Bearer abcdefghijklmnopqrstuvwxyz", "bearer token"),
            ("AKIAABCDEFGHIJKLMNOP", "AWS access key"),
            ("a zebra42", "pattern zebra[0-9]+"),
        ] {
            let found = wanted.any.matches(text.as_bytes());
            assert!(found.iter().any(|number| wanted.names[number] == name), "{text}");
        }
        assert!(wanted.any.matches(b"https://example.org/a:b@c an ordinary text").iter().next().is_none());
        assert!(Wanted::new(&[], &["(".into()]).is_err() && Wanted::new(&["NOT_SET_ANYWHERE".into()], &[]).is_err());
    }
}
