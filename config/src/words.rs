//! Wording: what a key takes, in which unit, and which key was probably meant.
//!
//! What it does not do: know the limits of single keys; see `check_config`.

/// The unit that a key's name ends in.
pub(crate) fn unit(key: &str) -> Option<&'static str> {
    let units = [
        ("_ms", "milliseconds"),
        ("_us", "microseconds"),
        ("_bytes", "bytes"),
        ("_bytes_max", "bytes"),
    ];
    units.into_iter().find(|(suffix, _)| key.ends_with(suffix)).map(|(_, unit)| unit)
}

/// What to write, where the name of the key tells more than its type does.
pub(crate) fn form(key: &str, in_list: bool) -> Option<String> {
    let (list, form) = match key {
        "listen" | "admin" | "address" => {
            (false, "an IP address with a port, such as 10.0.0.1:15700 or [fd00::1]:15700")
        }
        "addresses" => (true, "an IP address, such as 10.42.1.5 or fd00::5"),
        _ if key.ends_with("_cidrs") => (true, "a network, such as 10.42.0.0/16 or fd00::/64"),
        _ if key.ends_with("_ports") => (true, "a port, 1..=65535"),
        _ => return None,
    };
    Some(if list && !in_list { format!("a list, each element {form}") } else { form.to_owned() })
}

/// Reads `10s`, `512 MiB` and the like, and returns the plain number that the key wants.
pub(crate) fn in_unit(text: &str, unit: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text.get(..digits)?.parse().ok()?;
    let suffix = text.get(digits..)?.trim().to_ascii_lowercase();
    let nanoseconds: Option<u64> = match suffix.as_str() {
        "us" | "µs" => Some(1_000),
        "ms" => Some(1_000_000),
        "s" => Some(1_000_000_000),
        "m" | "min" => Some(60_000_000_000),
        "h" => Some(3_600_000_000_000),
        _ => None,
    };
    let bytes: Option<u64> = match suffix.as_str() {
        "b" => Some(1),
        "k" | "kb" => Some(1_000),
        "ki" | "kib" => Some(1 << 10),
        "mb" => Some(1_000_000),
        "mi" | "mib" => Some(1 << 20),
        "g" | "gb" => Some(1_000_000_000),
        "gi" | "gib" => Some(1 << 30),
        _ => None,
    };
    match unit {
        "milliseconds" => Some(number.checked_mul(nanoseconds?)? / 1_000_000),
        "microseconds" => Some(number.checked_mul(nanoseconds?)? / 1_000),
        "bytes" => number.checked_mul(bytes?),
        _ => None,
    }
}

/// The known word nearest to `word`, if it is near enough to have been meant.
pub(crate) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    const CHARS_MAX: usize = 64;
    if word.chars().count() > CHARS_MAX {
        return None;
    }
    let word = word.to_ascii_lowercase().replace('-', "_");
    // Somebody who leaves the unit out, or takes another one, means the key all the same.
    let stem = |key: &str| {
        let units = ["_ms", "_us", "_s", "_secs", "_seconds", "_bytes", "_kib", "_mib", "_mb"];
        let stripped = units.into_iter().find_map(|suffix| key.strip_suffix(suffix));
        stripped.unwrap_or(key).to_owned()
    };
    let distance_of = |key: &str| distance(&word, key).min(distance(&stem(&word), &stem(key)));
    let best = known.iter().copied().min_by_key(|key| distance_of(key))?;
    let edits_max = if word.len() < 3 { 1 } else { (word.len() / 3).max(2) };
    (distance_of(best) <= edits_max).then_some(best)
}

/// Edits (insert, delete, replace) between two words.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (at, from_char) in from.chars().enumerate() {
        let mut diagonal = at;
        row[0] = at + 1;
        for (column, to_char) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(from_char != *to_char);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_key_that_was_meant() {
        let known =
            ["connect_timeout_ms", "drain_timeout_ms", "listen_port", "window_budget_bytes"];
        assert_eq!(nearest("conect_timeout_ms", &known), Some("connect_timeout_ms"));
        assert_eq!(nearest("drain-timeout", &known), Some("drain_timeout_ms"));
        assert_eq!(nearest("window_budget_mib", &known), Some("window_budget_bytes"));
        assert_eq!(nearest("colour", &known), None);
        assert_eq!(nearest(&"x".repeat(1_000_000), &known), None);
        assert_eq!(nearest("", &known), None);
    }

    #[test]
    fn converts_units() {
        assert_eq!(in_unit("10s", "milliseconds"), Some(10_000));
        assert_eq!(in_unit("512 MiB", "bytes"), Some(512 << 20));
        assert_eq!(in_unit("50us", "microseconds"), Some(50));
        assert_eq!(in_unit("10", "bytes"), None);
        assert_eq!(in_unit("99999999999999999999s", "milliseconds"), None);
        assert_eq!(in_unit("18446744073709551615h", "milliseconds"), None);
        assert_eq!(in_unit("10 MiB", "milliseconds"), None);
        assert_eq!(in_unit("é", "bytes"), None);
    }
}
