//! Label selectors.

use super::{Labels, Match};
use std::sync::Arc;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requirement {
    Equals(Arc<str>, Arc<str>),
    In(Arc<str>, Box<[Arc<str>]>),
    /// Also when the label is absent.
    NotIn(Arc<str>, Box<[Arc<str>]>),
    Exists(Arc<str>),
    Absent(Arc<str>),
    /// What this version does not understand.
    Unknown,
}

impl Requirement {
    fn matches(&self, labels: &Labels) -> Match {
        match self {
            Self::Equals(key, value) => (labels.get(key) == Some(&**value)).into(),
            Self::In(key, values) => {
                labels.get(key).is_some_and(|found| values.iter().any(|v| **v == *found)).into()
            }
            Self::NotIn(key, values) => {
                labels.get(key).is_none_or(|found| values.iter().all(|v| **v != *found)).into()
            }
            Self::Exists(key) => labels.get(key).is_some().into(),
            Self::Absent(key) => labels.get(key).is_none().into(),
            Self::Unknown => Match::Unknown,
        }
    }
}

/// All requirements must hold; none selects everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector(pub Box<[Requirement]>);

impl Selector {
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> Match {
        self.0
            .iter()
            .fold(Match::Yes, |so_far, requirement| so_far.and(|| requirement.matches(labels)))
    }
}
