//! Recognizes lines whose fields have another delimiter than the pipeline says, for a hint.

/// The usual delimiters, each with the hint that names it.
const USUAL: [(u8, &str); 7] = [
    (b',', "the line looks as if `,` were its delimiter: set raw.csv_delimiter = \",\""),
    (b'|', "the line looks as if `|` were its delimiter: set raw.csv_delimiter = \"|\""),
    (b';', "the line looks as if `;` were its delimiter: set raw.csv_delimiter = \";\""),
    (b'\t', "the line looks as if a tab were its delimiter: set raw.csv_delimiter = \"\\t\""),
    (b'^', "the line looks as if `^` were its delimiter: set raw.csv_delimiter = \"^\""),
    (b'~', "the line looks as if `~` were its delimiter: set raw.csv_delimiter = \"~\""),
    (1, "the line looks as if U+0001 were its delimiter: set raw.csv_delimiter = \"\\u0001\""),
];

/// The hint for a line of `fields` that has too few of them, if another usual delimiter is obvious:
/// it stands in the first field, and either no delimiter was found or it gives exactly the expected
/// number of fields.
pub(super) fn hint<'a>(
    fields: impl Iterator<Item = &'a [u8]> + Clone,
    delimiter: u8,
    expected: usize,
) -> Option<&'static str> {
    let found = fields.clone().count();
    if found >= expected {
        return None;
    }
    let count_in = |field: &[u8], wanted: u8| field.iter().filter(|byte| **byte == wanted).count();
    let candidates = USUAL.into_iter().filter(|(other, _)| *other != delimiter);
    let obvious = candidates.filter_map(|(other, hint)| {
        let in_first = fields.clone().next().map_or(0, |first| count_in(first, other));
        let all: usize = fields.clone().map(|field| count_in(field, other)).sum();
        let is_exact = all + 1 == expected;
        (in_first > 0 && (found == 1 || is_exact)).then_some((is_exact, all, hint))
    });
    obvious.max_by_key(|(is_exact, all, _)| (*is_exact, *all)).map(|(.., hint)| hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(line: &str, delimiter: u8, expected: usize) -> Option<u8> {
        let fields = line.as_bytes().split(move |byte| *byte == delimiter);
        let hint = hint(fields, delimiter, expected)?;
        USUAL.iter().find(|(_, text)| *text == hint).map(|(byte, _)| *byte)
    }

    #[test]
    fn another_delimiter_is_named_where_it_is_obvious() {
        assert_eq!(named("I|1|Smith", b',', 3), Some(b'|'));
        assert_eq!(named("I|1|Smith, Bob", b',', 3), Some(b'|'));
        assert_eq!(named("I\t1;2\tx", b',', 3), Some(b'\t'));
        assert_eq!(named("I,1,x", b'|', 3), Some(b','));
        assert_eq!(named("I|1|a|b", b',', 3), Some(b'|'), "no delimiter was found");
        assert_eq!(named("I", b',', 3), None);
        assert_eq!(named("I,1|2", b',', 3), None, "not in the first field");
        assert_eq!(named("a|b,1,2", b',', 4), None, "not the expected number");
        assert_eq!(named("a|b,1,2", b',', 3), None, "not too few");
    }
}
