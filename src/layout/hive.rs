//! Partition names: `column=value` folders, escaped as in Hive.
//!
//! Why not the escapes of a URL library: Hive's set of characters is its own, and readers that list a
//! partition find it by its exact name.

/// The partition value that stands for null and for the empty string (Hive's
/// `hive.exec.default.partition.name`, Spark's `DEFAULT_PARTITION_NAME`).
pub(crate) const DEFAULT_PARTITION: &str = "__HIVE_DEFAULT_PARTITION__";

/// The folder of a Hive partition: `column=value`, both escaped. Null and the empty string share
/// `__HIVE_DEFAULT_PARTITION__`, as in Hive and Spark; so does a string of exactly that text.
///
/// ```
/// # use glueless::layout::partition_segment;
/// assert_eq!(partition_segment("city", Some("A/B: c%d=")), "city=A%2FB%3A c%25d%3D");
/// assert_eq!(partition_segment("city", None), "city=__HIVE_DEFAULT_PARTITION__");
/// ```
pub fn partition_segment(column: &str, value: Option<&str>) -> String {
    let value = match value {
        None | Some("") => DEFAULT_PARTITION.to_owned(),
        Some(value) => escape_name(value),
    };
    format!("{}={value}", escape_name(column))
}

/// Escapes text for a partition folder as Hive's `FileUtils.escapePathName` does: `%` and two
/// upper-case hex digits for every character of its `charToEscape`. Other characters stay,
/// including spaces and letters outside ASCII.
pub fn escape_name(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\0'..='\x1f'
            | '\x7f'
            | '"'
            | '#'
            | '%'
            | '\''
            | '*'
            | '/'
            | ':'
            | '='
            | '?'
            | '\\'
            | '{'
            | '['
            | ']'
            | '^' => {
                escaped.push_str(&format!("%{:02X}", u32::from(character)));
            }
            _ => escaped.push(character),
        }
    }
    escaped
}

/// Undoes the escaping of [`partition_segment`] as Hive's `FileUtils.unescapePathName` does: `%`
/// and two hex digits are the character of that code, up to U+00FF; any other `%` is literal.
/// Adjacent codes that form UTF-8 are decoded as UTF-8, because other engines write letters so.
pub(super) fn unescape(text: &str) -> String {
    let code = |text: &str| -> Option<u8> {
        let digits = text.strip_prefix('%')?.get(..2)?;
        let are_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        are_hex.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
    };
    let mut unescaped = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        unescaped.push_str(&rest[..at]);
        rest = &rest[at..];
        let mut codes = Vec::new();
        while let Some(code) = code(rest) {
            codes.push(code);
            rest = &rest[3..];
        }
        match (codes.is_empty(), std::str::from_utf8(&codes)) {
            (true, _) => {
                unescaped.push('%');
                rest = &rest[1..];
            }
            (false, Ok(letters)) => unescaped.push_str(letters),
            (false, Err(_)) => unescaped.extend(codes.into_iter().map(char::from)),
        }
    }
    unescaped.push_str(rest);
    unescaped
}

/// The column and value of a Hive partition's folder, unescaped; the value is None for
/// `__HIVE_DEFAULT_PARTITION__`. None if `segment` is not `column=value`, or one side of it is
/// empty.
pub fn parse_partition_segment(segment: &str) -> Option<(String, Option<String>)> {
    let (column, value) = segment.split_once('=')?;
    if column.is_empty() || value.is_empty() {
        return None;
    }
    let value = (value != DEFAULT_PARTITION).then(|| unescape(value));
    Some((unescape(column), value))
}

/// The columns and values of a partition, by its folder, outermost first.
pub fn partition_values(folder: &str) -> impl Iterator<Item = (String, Option<String>)> {
    folder.split('/').filter_map(parse_partition_segment)
}

/// Whether readers ignore a path: a segment of it begins with `_` or `.`, as in Hive and Spark.
pub fn is_hidden(path: &str) -> bool {
    path.split('/').any(|part| part.starts_with(['_', '.']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_named_as_hive_names_it() {
        for (value, segment) in [
            ("Basic", "c=Basic"),
            ("A/B: c%d=", "c=A%2FB%3A c%25d%3D"),
            ("Zürich 東京", "c=Zürich 東京"),
            ("a\tb\nc\x7f", "c=a%09b%0Ac%7F"),
            ("\0\x01\x1f", "c=%00%01%1F"),
            ("\"#%'*/:=?\\{[]^", "c=%22%23%25%27%2A%2F%3A%3D%3F%5C%7B%5B%5D%5E"),
            (" !$&()+,-.;<>@_`|}~", "c= !$&()+,-.;<>@_`|}~"),
            ("..", "c=.."),
            ("%41", "c=%2541"),
            ("2019-04-01 10:10:00", "c=2019-04-01 10%3A10%3A00"),
        ] {
            assert_eq!(partition_segment("c", Some(value)), segment);
            assert_eq!(
                parse_partition_segment(segment),
                Some(("c".to_owned(), Some(value.to_owned())))
            );
        }
        assert_eq!(partition_segment("a=b/c", Some("x")), "a%3Db%2Fc=x");
    }

    #[test]
    fn exactly_the_characters_of_hive_are_escaped() {
        let listed = "\"#%'*/:=?\\{[]^\x7f";
        for code in 0..=0x17f_u32 {
            let character = char::from_u32(code).unwrap();
            let is_literal =
                partition_segment("c", Some(&character.to_string())) == format!("c={character}");
            let escaped = code < 0x20 || listed.contains(character);
            assert_eq!(is_literal, !escaped, "{character:?}");
        }
    }

    #[test]
    fn null_and_the_empty_string_share_the_default_partition() {
        let segment = "c=__HIVE_DEFAULT_PARTITION__";
        assert_eq!(partition_segment("c", None), segment);
        assert_eq!(partition_segment("c", Some("")), segment);
        assert_eq!(parse_partition_segment(segment), Some(("c".to_owned(), None)));
    }

    #[test]
    fn every_column_and_value_survives_a_round_trip() {
        let characters: Vec<char> = (0..=0x2ff).filter_map(char::from_u32).collect();
        let all: String = characters.iter().collect();
        let pairs = characters.windows(2).map(|pair| pair.iter().collect::<String>());
        for text in pairs.chain([all, "A/B: c%d=".to_owned(), "🦀%F0".to_owned()]) {
            let segment = partition_segment(&text, Some(&text));
            assert!(!segment.contains('/'), "{segment:?}");
            assert_eq!(parse_partition_segment(&segment), Some((text.clone(), Some(text))));
        }
    }

    #[test]
    fn half_a_partition_segment_is_none() {
        for segment in ["", "c", "=", "c=", "=v", "2021-11-23"] {
            assert_eq!(parse_partition_segment(segment), None, "{segment}");
        }
        assert_eq!(
            parse_partition_segment("c=a=b"),
            Some(("c".to_owned(), Some("a=b".to_owned())))
        );
    }

    #[test]
    fn a_percent_sign_without_a_code_is_literal() {
        for (text, meant) in [
            ("100%", "100%"),
            ("%", "%"),
            ("%4", "%4"),
            ("%4G", "%4G"),
            ("%+4", "%+4"),
            ("%%41", "%A"),
            ("%41%42", "AB"),
            ("%2f%2F", "//"),
            ("%2541", "%41"),
            ("open%2Fodd %C3%A9", "open/odd é"),
            ("%é1", "%é1"),
            ("%E9", "é"),
            ("", ""),
        ] {
            assert_eq!(unescape(text), meant, "{text}");
        }
    }
}
