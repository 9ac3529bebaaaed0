//! What to do about an obstacle: rules by kind and filter, one grammar wherever they come from.
//!
//! ```text
//! policy := part (';' | newline) part ...
//! part   := rule | 'pristine'
//! rule   := KIND [':' FILTER] '=' ACTION
//! ACTION := refuse | reopen | rebind | sever | keep
//! ```
//!
//! `pristine` refuses every checkpoint once a request has been served, so that no image holds anything of one.
//!
//! `KIND` is an [`ObstacleKind::id`]. `FILTER` matches the thing's name (a path, `ADDR:PORT`) and may hold `*`, which stands
//! for any run of characters. A `#` at the start of a rule makes it a comment. The last rule that matches wins, so a general
//! rule comes first.
//!
//! ```
//! # use crac_core::{Action, ObstacleKind, Policy};
//! let policy: Policy = "file-writable:/var/lib/orders/* = reopen; tcp-established:10.0.0.9:* = sever".parse()?;
//! assert_eq!(policy.decide(ObstacleKind::FileWritable, "/var/lib/orders/wal"), Action::Reopen);
//! assert_eq!(policy.decide(ObstacleKind::FileWritable, "/etc/hosts"), Action::Refuse);
//! # Ok::<(), crac_core::PolicyError>(())
//! ```

use std::{fmt, str::FromStr};

use crate::obstacle::{ObstacleKind, UnknownObstacleKind};

/// What is done about an obstacle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Action {
    /// The checkpoint is refused and the obstacle reported. The default.
    Refuse,
    /// A file is opened again at its path, at its offset.
    Reopen,
    /// A socket is bound again to its address.
    Rebind,
    /// A connection comes back as a dead socket: its users see a reset or an end of file and reconnect.
    Sever,
    /// The thing is left as it is; only for engines that keep it (a VM keeps descriptors), and for `allocator-raw`: the image then
    /// is always restored eagerly, which is safe.
    Keep,
}

impl Action {
    const ALL: [(&'static str, Action); 5] = [
        ("refuse", Action::Refuse),
        ("reopen", Action::Reopen),
        ("rebind", Action::Rebind),
        ("sever", Action::Sever),
        ("keep", Action::Keep),
    ];
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, _) = Self::ALL.iter().find(|(_, action)| action == self).expect("every action has a name");
        f.pad(name)
    }
}

/// One rule of a [`Policy`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    kind: ObstacleKind,
    filter: Option<String>,
    action: Action,
}

/// An ordered list of rules; without a matching rule the answer is [`Action::Refuse`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule>,
    pristine: bool,
}

impl Policy {
    /// The policy that refuses everything that cannot be saved.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a rule behind the others: it wins over them.
    #[must_use]
    pub fn rule(mut self, kind: ObstacleKind, filter: Option<&str>, action: Action) -> Self {
        self.rules.push(Rule { kind, filter: filter.map(str::to_owned), action });
        self
    }

    /// Adds all rules of `later` behind the rules of this policy.
    pub fn extend(&mut self, later: Policy) {
        self.rules.extend(later.rules);
        self.pristine |= later.pristine;
    }

    /// Refuses every checkpoint once a request has been served.
    #[must_use]
    pub fn pristine(mut self) -> Self {
        self.pristine = true;
        self
    }

    /// Whether a checkpoint is refused once a request has been served.
    pub fn is_pristine(&self) -> bool {
        self.pristine
    }

    /// What to do about a thing of `kind` that is called `name` (a path or an address).
    ///
    /// Allocates nothing and takes no lock, so that an engine may ask while every other thread is stopped.
    pub fn decide(&self, kind: ObstacleKind, name: &str) -> Action {
        self.rules
            .iter()
            .rev()
            .find(|rule| {
                rule.kind == kind && rule.filter.as_deref().is_none_or(|filter| glob(filter.as_bytes(), name.as_bytes()))
            })
            .map_or(Action::Refuse, |rule| rule.action)
    }

    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && !self.pristine
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, rule) in self.rules.iter().enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            let filter = rule.filter.as_deref().map(|filter| format!(":{filter}")).unwrap_or_default();
            write!(f, "{separator}{}{filter} = {}", rule.kind, rule.action)?;
        }
        match (self.pristine, self.rules.is_empty()) {
            (true, true) => f.write_str("pristine"),
            (true, false) => f.write_str("; pristine"),
            (false, _) => Ok(()),
        }
    }
}

/// Why a policy text was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// A rule has no `=`.
    #[error("policy rule `{0}` has no `=`; write KIND[:FILTER] = ACTION")]
    NoAction(String),
    /// The action is none of the list.
    #[error("policy rule `{rule}`: unknown action `{action}`; expected one of refuse, reopen, rebind, sever, keep")]
    UnknownAction {
        /// The whole rule.
        rule: String,
        /// The word found.
        action: String,
    },
    /// The kind is none of the list.
    #[error("policy rule `{rule}`: {source}")]
    UnknownKind {
        /// The whole rule.
        rule: String,
        /// The kind found.
        source: UnknownObstacleKind,
    },
}

impl FromStr for Policy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut policy = Policy::new();
        for rule in text.split([';', '\n']).map(str::trim).filter(|rule| !rule.is_empty() && !rule.starts_with('#')) {
            if rule == "pristine" {
                policy.pristine = true;
                continue;
            }
            let (left, action) = rule.rsplit_once('=').ok_or_else(|| PolicyError::NoAction(rule.to_owned()))?;
            let action = action.trim();
            let (_, action) = Action::ALL
                .iter()
                .find(|(name, _)| *name == action)
                .ok_or_else(|| PolicyError::UnknownAction { rule: rule.to_owned(), action: action.to_owned() })?;
            let (kind, filter) = match left.split_once(':') {
                Some((kind, filter)) => (kind.trim(), Some(filter.trim())),
                None => (left.trim(), None),
            };
            let kind = kind.parse().map_err(|source| PolicyError::UnknownKind { rule: rule.to_owned(), source })?;
            policy = policy.rule(kind, filter, *action);
        }
        Ok(policy)
    }
}

/// Whether `name` matches `filter`, where `*` stands for any run of bytes.
fn glob(filter: &[u8], name: &[u8]) -> bool {
    let (mut at, mut name_at) = (0, 0);
    let mut retry = None;
    while name_at < name.len() {
        match filter.get(at) {
            Some(b'*') => {
                retry = Some((at + 1, name_at));
                at += 1;
            }
            Some(byte) if *byte == name[name_at] => {
                at += 1;
                name_at += 1;
            }
            _ => match retry {
                Some((after_star, tried)) => {
                    at = after_star;
                    name_at = tried + 1;
                    retry = Some((after_star, tried + 1));
                }
                None => return false,
            },
        }
    }
    filter[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_matching_rule_wins() {
        let policy: Policy = "file-writable = reopen\nfile-writable:/etc/* = refuse".parse().unwrap();
        assert_eq!(policy.decide(ObstacleKind::FileWritable, "/var/x"), Action::Reopen);
        assert_eq!(policy.decide(ObstacleKind::FileWritable, "/etc/x"), Action::Refuse);
        assert_eq!(policy.decide(ObstacleKind::Memfd, "/var/x"), Action::Refuse);
    }

    #[test]
    fn display_and_parse_are_inverse() {
        let policy: Policy = "tcp-established:10.0.0.9:* = sever; pristine; file-writable = reopen".parse().unwrap();
        assert_eq!(policy.to_string().parse::<Policy>().unwrap(), policy);
    }

    #[test]
    fn a_wrong_rule_is_named() {
        for (text, part) in [("tcp = sever", "unknown kind"), ("memfd = bless", "expected one of"), ("memfd", "no `=`")] {
            let error = text.parse::<Policy>().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn stars_match_any_run() {
        for (filter, name, matches) in [
            ("*", "", true),
            ("a*b*c", "a--b-bc", true),
            ("a*b", "ac", false),
            ("", "x", false),
            ("/tmp/*.log", "/tmp/a.log", true),
        ] {
            assert_eq!(glob(filter.as_bytes(), name.as_bytes()), matches, "{filter} {name}");
        }
    }
}
