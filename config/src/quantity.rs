//! Quantities as Kubernetes writes them: `250m`, `64Mi`, `1.5`.
//!
//! What it does not do: print them; what was written is passed on as it is.

/// A quantity that is more than nothing, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity(u128);

impl Quantity {
    /// What is allowed, for messages.
    pub const FORM: &'static str = "a number above 0 with an optional suffix of m, k, M, G, T, Ki, Mi, Gi or Ti, such as 250m, 1.5 or 64Mi";

    /// Digits in all: more are no quantity of anything on a machine.
    const DIGITS_MAX: usize = 15;

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let unit: u128 = match suffix {
            "m" => 1,
            "" => 1_000,
            "k" => 1_000_000,
            "M" => 1_000_000_000,
            "G" => 1_000_000_000_000,
            "T" => 1_000_000_000_000_000,
            "Ki" => 1_000 << 10,
            "Mi" => 1_000 << 20,
            "Gi" => 1_000 << 30,
            "Ti" => 1_000 << 40,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !digits(fraction) || number.len() > Self::DIGITS_MAX {
            return None;
        }
        if number.ends_with('.') {
            return None;
        }
        let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
        let value: u128 = format!("{whole}{fraction}").parse().ok()?;
        let thousandths = value.checked_mul(unit)? / scale;
        (thousandths > 0).then_some(Self(thousandths))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_kubernetes_takes() {
        let order = ["1m", "250m", "1", "1.5", "2k", "2Ki", "1M", "1Mi", "1Gi", "1T", "1Ti"];
        for pair in order.windows(2) {
            assert!(
                Quantity::parse(pair[0]).unwrap() < Quantity::parse(pair[1]).unwrap(),
                "{pair:?}"
            );
        }
        assert_eq!(Quantity::parse("0.5"), Quantity::parse("500m"));
        assert_eq!(Quantity::parse("1024Ki"), Quantity::parse("1Mi"));
    }

    #[test]
    fn refuses_the_rest() {
        for bad in [
            "",
            "m",
            "-1",
            "+1",
            "0",
            "0.0001m",
            "1.",
            ".5",
            "1..2",
            "1 Mi",
            "1MiB",
            "64mb",
            "1e3",
            "ä",
            "9999999999999999",
        ] {
            assert_eq!(Quantity::parse(bad), None, "{bad}");
        }
    }
}
