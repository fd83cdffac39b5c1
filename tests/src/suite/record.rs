//! The results as they are kept: JSON lines, the first of them the run itself, then one for each
//! figure.

use super::Machine;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// One figure of one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    pub round: u32,
    pub path: String,
    /// What was run; for jobs of one family at several sizes, the family.
    pub job: String,
    /// Message or file size, where the job has one.
    pub bytes: Option<u32>,
    pub metric: String,
    pub unit: String,
    pub lower_is_better: bool,
    pub value: f64,
    /// Whether nobody else took the machine meanwhile.
    pub clean: bool,
}

/// What a figure is about, whichever path and round.
pub type Subject = (String, Option<u32>, String);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    pub machine: Machine,
    pub rounds: u32,
    pub seconds: u64,
    pub paths: Vec<String>,
    #[serde(skip)]
    pub figures: Vec<Figure>,
}

/// The middle of the rounds, and how far they lie apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    pub median: f64,
    /// Half of the distance between lowest and highest, as a share of the median.
    pub scatter: f64,
    /// One knows nothing of scatter.
    pub rounds: usize,
}

impl Run {
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string(self)? + "\n";
        for figure in &self.figures {
            text += &(serde_json::to_string(figure)? + "\n");
        }
        let mut file =
            std::fs::File::create(path).with_context(|| format!("create {}", path.display()))?;
        file.write_all(text.as_bytes()).with_context(|| format!("write {}", path.display()))
    }

    /// # Errors
    /// When it cannot be read, or is not what [`Self::write`] wrote.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let mut lines = text.lines();
        let head = lines.next().unwrap_or_default();
        let mut run: Self = serde_json::from_str(head)
            .with_context(|| format!("{}: line 1 is no run of `make bench`", path.display()))?;
        for (number, line) in (2..).zip(lines) {
            let figure = serde_json::from_str(line)
                .with_context(|| format!("{}: line {number} is no figure", path.display()))?;
            run.figures.push(figure);
        }
        Ok(run)
    }

    /// Everything measured, by subject and path. Disturbed rounds count only where no other is left.
    #[must_use]
    pub fn summaries(&self) -> BTreeMap<(Subject, String), Summary> {
        let mut all: BTreeMap<(Subject, String), Vec<&Figure>> = BTreeMap::new();
        for figure in &self.figures {
            let subject = (figure.job.clone(), figure.bytes, figure.metric.clone());
            all.entry((subject, figure.path.clone())).or_default().push(figure);
        }
        all.into_iter().map(|(key, figures)| (key, summary(&figures))).collect()
    }

    /// The first figure about a subject: its unit and direction.
    #[must_use]
    pub fn example(&self, subject: &Subject) -> Option<&Figure> {
        self.figures.iter().find(|figure| {
            figure.job == subject.0 && figure.bytes == subject.1 && figure.metric == subject.2
        })
    }
}

fn summary(figures: &[&Figure]) -> Summary {
    let clean = figures.iter().any(|figure| figure.clean);
    let mut values: Vec<f64> =
        figures.iter().filter(|f| f.clean || !clean).map(|f| f.value).collect();
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    let middle = values.len() / 2;
    let median =
        if values.len() % 2 == 1 { at(middle) } else { f64::midpoint(at(middle - 1), at(middle)) };
    let scatter = (at(values.len() - 1) - at(0)) / 2.0 / median;
    let scatter = if scatter.is_finite() { scatter.abs() } else { 0.0 };
    Summary { median, scatter, rounds: values.len() }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn run(values: &[(&str, &str, &[f64], bool)]) -> Run {
        let mut figures = Vec::new();
        for (path, metric, rounds, lower_is_better) in values {
            for (round, value) in (1..).zip(*rounds) {
                figures.push(Figure {
                    round,
                    path: (*path).into(),
                    job: "ping-pong".into(),
                    bytes: Some(64),
                    metric: (*metric).into(),
                    unit: "µs".into(),
                    lower_is_better: *lower_is_better,
                    value: *value,
                    clean: true,
                });
            }
        }
        let mut paths: Vec<String> = Vec::new();
        for figure in &figures {
            if !paths.contains(&figure.path) {
                paths.push(figure.path.clone());
            }
        }
        Run { machine: Machine::default(), rounds: 3, seconds: 1, paths, figures }
    }

    #[test]
    fn what_was_written_is_read() {
        let run = run(&[("direct", "p50", &[1.5, 2.5], true)]);
        let path = std::env::temp_dir().join(format!("rdmesh-record-{}.jsonl", std::process::id()));
        run.write(&path).unwrap();
        let read = Run::read(&path);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read.unwrap(), run);
    }

    #[test]
    fn disturbed_rounds_count_only_alone() {
        let mut run = run(&[("direct", "p50", &[10.0, 12.0, 90.0], true)]);
        run.figures[2].clean = false;
        let key = (("ping-pong".into(), Some(64), "p50".into()), "direct".into());
        let found = run.summaries()[&key];
        assert!((found.median - 11.0).abs() < 1e-9 && found.scatter < 0.1, "{found:?}");
        run.figures.drain(..2);
        assert!((run.summaries()[&key].median - 90.0).abs() < 1e-9);
    }
}
