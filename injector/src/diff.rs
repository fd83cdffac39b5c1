//! A unified diff of two texts, for people.
//!
//! What it does not do: find the smallest diff of large texts; beyond a limit all is shown as replaced.

use std::fmt::Write;

const CONTEXT: usize = 3;
/// Cells of the table of common lines.
const CELLS_MAX: usize = 16 << 20;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Edit {
    Keep,
    Remove,
    Insert,
}

/// Empty when nothing differs.
#[must_use]
pub fn diff(name: &str, before: &str, after: &str) -> String {
    let old: Vec<&str> = before.lines().collect();
    let new: Vec<&str> = after.lines().collect();
    let edits = edits(&old, &new);
    if edits.iter().all(|edit| *edit == Edit::Keep) {
        return String::new();
    }
    let mut text = format!("--- {name}\n+++ {name} (injected)\n");
    let changed: Vec<usize> = edits
        .iter()
        .enumerate()
        .filter(|(_, edit)| **edit != Edit::Keep)
        .map(|(at, _)| at)
        .collect();
    let (mut old_at, mut new_at, mut at) = (0, 0, 0);
    let mut rest = changed.as_slice();
    while let Some(first) = rest.first() {
        let mut last = *first;
        let mut taken = 0;
        for next in rest {
            if *next > last + 2 * CONTEXT {
                break;
            }
            (last, taken) = (*next, taken + 1);
        }
        rest = rest.get(taken..).unwrap_or_default();
        let start = first.saturating_sub(CONTEXT).max(at);
        let end = (last + CONTEXT + 1).min(edits.len());
        // Between hunks every line is kept.
        (old_at, new_at) = (old_at + start - at, new_at + start - at);
        let hunk = edits.get(start..end).unwrap_or_default();
        let count = |edit| hunk.iter().filter(|found| **found == edit).count();
        let kept = count(Edit::Keep);
        let (removed, inserted) = (kept + count(Edit::Remove), kept + count(Edit::Insert));
        let _ = writeln!(text, "@@ -{},{removed} +{},{inserted} @@", old_at + 1, new_at + 1);
        for edit in hunk {
            let (sign, line) = match edit {
                Edit::Insert => ('+', new.get(new_at)),
                Edit::Remove => ('-', old.get(old_at)),
                Edit::Keep => (' ', old.get(old_at)),
            };
            let _ = writeln!(text, "{sign}{}", line.copied().unwrap_or_default());
            old_at += usize::from(*edit != Edit::Insert);
            new_at += usize::from(*edit != Edit::Remove);
        }
        at = end;
    }
    text
}

/// By the longest common subsequence, between what is the same at both ends.
fn edits(old: &[&str], new: &[&str]) -> Vec<Edit> {
    let same =
        |pairs: &mut dyn Iterator<Item = (&&str, &&str)>| pairs.take_while(|(a, b)| a == b).count();
    let head = same(&mut old.iter().zip(new));
    let (old, new) = (&old[head..], &new[head..]);
    let tail = same(&mut old.iter().rev().zip(new.iter().rev()));
    let (old, new) = (&old[..old.len() - tail], &new[..new.len() - tail]);
    let mut edits = vec![Edit::Keep; head];
    if old.len().saturating_mul(new.len()) > CELLS_MAX {
        edits.extend(old.iter().map(|_| Edit::Remove));
        edits.extend(new.iter().map(|_| Edit::Insert));
    } else {
        middle(old, new, &mut edits);
    }
    edits.extend(std::iter::repeat_n(Edit::Keep, tail));
    edits
}

fn middle(old: &[&str], new: &[&str], edits: &mut Vec<Edit>) {
    let width = new.len() + 1;
    let mut common = vec![0_u32; (old.len() + 1) * width];
    for (i, a) in old.iter().enumerate().rev() {
        for (j, b) in new.iter().enumerate().rev() {
            common[i * width + j] = if a == b {
                common[(i + 1) * width + j + 1] + 1
            } else {
                common[(i + 1) * width + j].max(common[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            edits.push(Edit::Keep);
            (i, j) = (i + 1, j + 1);
        } else if j == new.len()
            || i < old.len() && common[(i + 1) * width + j] >= common[i * width + j + 1]
        {
            edits.push(Edit::Remove);
            i += 1;
        } else {
            edits.push(Edit::Insert);
            j += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hunks_with_context() {
        let before: String = (1..=20).map(|n| format!("{n}\n")).collect();
        let after = before.replace("\n2\n", "\n2\nx\n").replace("18\n", "");
        let expected = "--- f\n+++ f (injected)\n@@ -1,5 +1,6 @@\n 1\n 2\n+x\n 3\n 4\n 5\n\
                        @@ -15,6 +16,5 @@\n 15\n 16\n 17\n-18\n 19\n 20\n";
        assert_eq!(diff("f", &before, &after), expected);
        assert_eq!(diff("f", &before, &before), "");
        assert!(diff("f", "", "a\n").ends_with("@@ -1,0 +1,1 @@\n+a\n"));
    }
}
