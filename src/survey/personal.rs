//! Columns that look personal, by their names and the shape of their values, and the mask that fits.

use crate::survey::PersonalColumn;
use crate::survey::sample::{Column, Sample};

/// The least values by whose shape a column is judged.
const VALUES_MIN: usize = 5;

/// Names, or parts of them at the border of a word, in lower case, with the mask that fits.
const NAMES: [(&str, &str, &str); 33] = [
    ("email", "hmac", "a mail address"),
    ("e_mail", "hmac", "a mail address"),
    ("mail", "hmac", "a mail address"),
    ("phone", "hmac", "a telephone number"),
    ("telephone", "hmac", "a telephone number"),
    ("mobile", "hmac", "a telephone number"),
    ("msisdn", "hmac", "a telephone number"),
    ("fax", "hmac", "a telephone number"),
    ("first_name", "redact", "a name"),
    ("firstname", "redact", "a name"),
    ("last_name", "redact", "a name"),
    ("lastname", "redact", "a name"),
    ("full_name", "redact", "a name"),
    ("fullname", "redact", "a name"),
    ("surname", "redact", "a name"),
    ("given_name", "redact", "a name"),
    ("family_name", "redact", "a name"),
    ("middle_name", "redact", "a name"),
    ("maiden_name", "redact", "a name"),
    ("birth_date", "year", "a date of birth"),
    ("birthdate", "year", "a date of birth"),
    ("birthday", "year", "a date of birth"),
    ("date_of_birth", "year", "a date of birth"),
    ("dob", "year", "a date of birth"),
    ("ssn", "hmac", "a number of a person"),
    ("social_security", "hmac", "a number of a person"),
    ("passport", "hmac", "a number of a person"),
    ("tax_id", "hmac", "a number of a person"),
    ("national_id", "hmac", "a number of a person"),
    ("iban", "last4", "the number of an account"),
    ("street", "redact", "an address"),
    ("address", "redact", "an address"),
    ("ip_address", "hmac", "an address on the network"),
];

/// Finds the columns that look personal, but for some.
pub(super) fn find(sample: &Sample, others: &[String]) -> Vec<PersonalColumn> {
    let is_other =
        |column: &&Column| !others.iter().any(|other| other.eq_ignore_ascii_case(&column.name));
    let columns = sample.columns.iter().filter(is_other);
    let judged = columns.filter_map(|column| {
        let (mask, what) = by_name(&column.name).or_else(|| by_values(column))?;
        Some(PersonalColumn { column: column.name.clone(), mask, what })
    });
    judged.collect()
}

/// By its name: the longest that fits counts.
fn by_name(name: &str) -> Option<(&'static str, &'static str)> {
    let lower = format!("_{}_", name.to_ascii_lowercase().replace(['-', '.', ' '], "_"));
    let fitting = NAMES.iter().filter(|(part, ..)| lower.contains(&format!("_{part}_")));
    fitting.max_by_key(|(part, ..)| part.len()).map(|(_, mask, what)| (*mask, *what))
}

/// By its values: mail addresses, or numbers of cards with their check digit.
fn by_values(column: &Column) -> Option<(&'static str, &'static str)> {
    let values: Vec<&String> =
        column.values.iter().flatten().filter(|value| !value.is_empty()).collect();
    if values.len() < VALUES_MIN {
        return None;
    }
    let share = |is: fn(&str) -> bool| {
        values.iter().filter(|value| is(value)).count() * 10 >= values.len() * 9
    };
    if share(is_mail) {
        Some(("hmac", "a mail address"))
    } else if share(is_card) {
        Some(("last4", "the number of a card"))
    } else {
        None
    }
}

fn is_mail(text: &str) -> bool {
    text.split_once('@').is_some_and(|(name, host)| {
        !name.is_empty()
            && host.contains('.')
            && !text.contains(char::is_whitespace)
            && !host.contains('@')
    })
}

/// Whether a text is 13 to 19 digits, with spaces or dashes between them, of which the last is the check digit of the others
/// (ISO/IEC 7812-1, annex B).
fn is_card(text: &str) -> bool {
    let digits: Option<Vec<u32>> =
        text.chars().filter(|c| ![' ', '-'].contains(c)).map(|c| c.to_digit(10)).collect();
    let Some(digits) = digits.filter(|digits| (13..=19).contains(&digits.len())) else {
        return false;
    };
    let doubled = |(at, digit): (usize, &u32)| match at % 2 {
        1 => digit * 2 / 10 + digit * 2 % 10,
        _ => *digit,
    };
    let sum: u32 = digits.iter().rev().enumerate().map(doubled).sum();
    digits.iter().any(|digit| *digit > 0) && sum.is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_as_whole_words() {
        assert_eq!(by_name("Email"), Some(("hmac", "a mail address")));
        assert_eq!(by_name("billing_address"), Some(("redact", "an address")));
        assert_eq!(by_name("ip_address"), Some(("hmac", "an address on the network")));
        assert_eq!(by_name("customer.first-name"), Some(("redact", "a name")));
        assert_eq!(by_name("mailbox_size"), None);
        assert_eq!(by_name("product_name"), None);
    }

    #[test]
    fn cards_are_known_by_their_check_digit() {
        assert!(is_card("4111 1111 1111 1111") && is_card("5500005555555559"));
        assert!(!is_card("4111111111111112") && !is_card("0000000000000000") && !is_card("411111"));
        assert!(is_mail("ann@example.org") && !is_mail("ann@host") && !is_mail("a b@example.org"));
    }
}
