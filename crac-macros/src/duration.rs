//! Durations as people write them: `500ms`, `10s`, `2m`, `1h`.

use std::time::Duration;

/// Units by the text behind the number, in milliseconds.
const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

/// Reads one whole number and its unit, without space or sign, as a duration longer than zero.
///
/// # Errors
///
/// What is wrong with `text`, worded to follow "`drain_deadline` is ".
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    if digits.is_empty() || unit.starts_with(['.', ',', '_']) {
        return Err(format!("`{text}`, not a whole number with a unit"));
    }
    if unit.is_empty() {
        return Err(format!("`{text}`, a number without a unit"));
    }
    let Some((_, unit_ms)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(format!("`{text}`, which has the unknown unit `{unit}`"));
    };
    let millis = digits.parse::<u64>().ok().and_then(|count| count.checked_mul(*unit_ms));
    match millis {
        Some(0) => Err("zero, so nothing could meet it".to_owned()),
        Some(millis) => Ok(Duration::from_millis(millis)),
        None => Err(format!("`{text}`, more milliseconds than 64 bits hold")),
    }
}

#[cfg(test)]
mod tests {
    use super::parse;
    use std::time::Duration;

    #[test]
    fn each_unit_counts_in_milliseconds() {
        let read = ["500ms", "10s", "2m", "1h"].map(|text| parse(text).unwrap());
        assert_eq!(read, [500, 10_000, 120_000, 3_600_000].map(Duration::from_millis));
    }

    #[test]
    fn a_number_alone_is_refused_for_its_missing_unit() {
        assert_eq!(parse("10").unwrap_err(), "`10`, a number without a unit");
    }

    #[test]
    fn an_unknown_unit_is_named() {
        assert_eq!(parse("10sec").unwrap_err(), "`10sec`, which has the unknown unit `sec`");
        assert_eq!(parse("10 s").unwrap_err(), "`10 s`, which has the unknown unit ` s`");
    }

    #[test]
    fn fractions_signs_and_words_are_not_whole_numbers() {
        for text in ["", "s", "-1s", "1.5s", "1,5s", "1_000ms", "soon"] {
            assert_eq!(parse(text).unwrap_err(), format!("`{text}`, not a whole number with a unit"));
        }
    }

    #[test]
    fn zero_and_overflow_are_refused() {
        assert_eq!(parse("0s").unwrap_err(), "zero, so nothing could meet it");
        assert!(parse("18446744073709551616ms").unwrap_err().ends_with("64 bits hold"));
        assert!(parse("18446744073709551615h").unwrap_err().ends_with("64 bits hold"));
        assert_eq!(parse("18446744073709551615ms").unwrap(), Duration::from_millis(u64::MAX));
    }
}
