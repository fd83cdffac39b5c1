//! What is wrong with a file: all of it, for a person to read.
//!
//! What it does not do: find faults.

use std::fmt;

/// More than this many faults are not collected: the first ones tell the story.
pub(crate) const FAULTS_MAX: usize = 50;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The key's path, `node.limits.streams_max` or `pods[3].uid`; empty for the file as a whole.
    pub path: String,
    /// Counted from 1; none where the key is absent or the file could not be read.
    pub line: Option<usize>,
    /// The value as written, shortened; none where the key is absent or holds a whole section.
    pub value: Option<String>,
    /// What is allowed, or what to do.
    pub problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}", self.path)?;
            if let Some(value) = &self.value {
                write!(f, " = {value}")?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.problem)
    }
}

/// Everything that is wrong with one file, in the order of its lines. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults {
    /// The file's name, or what the caller called the text.
    pub origin: String,
    pub faults: Vec<Fault>,
    /// There were more than are listed.
    pub truncated: bool,
}

impl Faults {
    pub(crate) fn new(origin: &str, mut faults: Vec<Fault>) -> Self {
        // Faults of absent keys have no line; they read best at the end.
        faults.sort_by_key(|fault| fault.line.unwrap_or(usize::MAX));
        let truncated = faults.len() > FAULTS_MAX;
        faults.truncate(FAULTS_MAX);
        Self { origin: origin.to_owned(), faults, truncated }
    }

    pub(crate) fn whole(origin: &str, line: Option<usize>, problem: impl Into<String>) -> Self {
        let fault = Fault { path: String::new(), line, value: None, problem: problem.into() };
        Self::new(origin, vec![fault])
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [fault] = self.faults.as_slice() {
            return write!(f, "{}: {fault}", self.origin);
        }
        let many = if self.truncated { "more than " } else { "" };
        write!(f, "{}: {many}{} faults", self.origin, self.faults.len())?;
        for fault in &self.faults {
            write!(f, "\n  {fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
