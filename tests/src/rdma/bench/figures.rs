//! Figures by name, every round adds one; and why a figure is not there.

use anyhow::{Context, Result};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct Figures {
    all: BTreeMap<String, Vec<f64>>,
    /// Why something was not measured.
    missing: BTreeMap<String, String>,
}

impl Figures {
    pub fn add(&mut self, name: &str, figure: Result<f64>) -> Result<()> {
        let figure = figure.with_context(|| name.to_owned())?;
        eprintln!("  {name}: {figure:.2}");
        self.all.entry(name.to_owned()).or_default().push(figure);
        Ok(())
    }

    /// What does not work once is not tried again.
    pub fn miss(&mut self, name: &str, why: String) {
        eprintln!("  {name}: {why}");
        self.missing.insert(name.to_owned(), why);
    }

    pub fn missing(&self) -> &BTreeMap<String, String> {
        &self.missing
    }

    pub fn all(&self) -> &BTreeMap<String, Vec<f64>> {
        &self.all
    }

    pub fn median(&self, name: &str) -> Option<f64> {
        let mut all = self.all.get(name)?.clone();
        all.sort_by(f64::total_cmp);
        let middle = all.len() / 2;
        if all.len() % 2 == 1 {
            all.get(middle).copied()
        } else {
            Some(f64::midpoint(*all.get(middle.checked_sub(1)?)?, *all.get(middle)?))
        }
    }

    /// The first figure through the second.
    pub fn ratio(&self, of: &str, to: &str) -> Option<f64> {
        Some(self.median(of)? / self.median(to)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_what_was_measured() {
        let mut figures = Figures::default();
        for figure in [3.0, 1.0, 9.0] {
            figures.add("odd", Ok(figure)).unwrap();
        }
        for figure in [1.0, 2.0] {
            figures.add("even", Ok(figure)).unwrap();
        }
        assert_eq!((figures.median("odd"), figures.median("even")), (Some(3.0), Some(1.5)));
        assert_eq!(figures.ratio("odd", "even"), Some(2.0));
        assert_eq!(figures.median("none"), None);
    }
}
