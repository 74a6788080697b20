//! Keys that are given on the command line, and in files.

use std::fs::File;
use std::io::{Read, stdin};
use std::path::Path;

use crate::error::{Error, Result};

/// The keys of a command: those of its arguments, and those in a file, `-` for stdin, which has a line for each. Each is
/// the texts of its columns, which have these names. Several columns are separated by commas, as in CSV; so are those of
/// a file in any case. A first line with the names of the columns, in any order, is none.
///
/// # Errors
/// Usage, when a key does not have all columns, there is no key, or the file cannot be read.
pub(super) fn keys(
    names: &[String],
    given: &[String],
    file: Option<&Path>,
) -> Result<Vec<Vec<String>>> {
    if names.is_empty() {
        return Err(Error::usage("the pipeline has no key: its rows are only appended"));
    }
    let mut keys = Vec::new();
    for (number, text) in given.iter().enumerate() {
        if let [_] = names {
            keys.push(vec![text.clone()]);
            continue;
        }
        let which = format!("key {} of the command line", number + 1);
        match &records(names, text.as_bytes(), &which)?[..] {
            [key] => keys.push(key.clone()),
            _ => return Err(Error::usage(format!("{which} is not one key"))),
        }
    }
    if let Some(path) = file {
        let is_stdin = path == Path::new("-");
        let (name, opened): (_, std::io::Result<Box<dyn Read>>) = if is_stdin {
            ("stdin".to_string(), Ok(Box::new(stdin())))
        } else {
            let opened = File::open(path).map(|file| Box::new(file) as Box<dyn Read>);
            (path.display().to_string(), opened)
        };
        let opened = opened.map_err(|error| {
            Error::usage(format!("{name} cannot be read"))
                .hint("--keys-file names a file with a key per line, or is - for stdin")
                .caused_by(error)
        })?;
        let mut of_file = records(names, opened, &name)?;
        if let Some(order) = of_file.first().and_then(|first| order_of(names, first)) {
            of_file.remove(0);
            let in_order = |key: Vec<String>| order.iter().map(|at| key[*at].clone()).collect();
            of_file = of_file.into_iter().map(in_order).collect();
        }
        keys.extend(of_file);
    }
    if keys.is_empty() {
        return Err(Error::usage("no key was given")
            .hint("name keys on the command line, or a file with a key per line by --keys-file"));
    }
    Ok(keys)
}

/// Where each of the columns is in a header, which has their names in any order and case; `None` if it is none.
fn order_of(names: &[String], header: &[String]) -> Option<Vec<usize>> {
    let place = |name: &String| header.iter().position(|text| text.eq_ignore_ascii_case(name));
    names.iter().map(place).collect()
}

/// The records of CSV, all of which have a value for each of the columns.
fn records(names: &[String], read: impl Read, name: &str) -> Result<Vec<Vec<String>>> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(read);
    let mut keys = Vec::new();
    for record in reader.records() {
        // The message of an error may have a value.
        let record = record.map_err(|error| {
            let line = error.position().map_or(String::new(), |at| format!(", line {}", at.line()));
            Error::usage(format!("{name}{line} cannot be read as CSV in UTF-8"))
        })?;
        if record.len() != names.len() {
            let line = record.position().map_or(1, csv::Position::line);
            return Err(Error::usage(format!(
                "{name}, line {line}: the key has {} columns, and {} values were given",
                names.len(),
                record.len()
            ))
            .hint(format!(
                "give a value for each of: {}; separate them by commas, and quote one with a comma in it",
                names.join(", ")
            )));
        }
        keys.push(record.iter().map(String::from).collect());
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn keys_are_read_from_arguments_and_files() {
        let one = names(&["id"]);
        let given = names(&["7,8", "x\"y"]);
        assert_eq!(keys(&one, &given, None).expect("keys"), [["7,8"], ["x\"y"]]);
        let two = names(&["tenant", "id"]);
        let given = names(&["a,7", "\"b,c\",8"]);
        assert_eq!(keys(&two, &given, None).expect("keys"), [["a", "7"], ["b,c", "8"]]);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keys.csv");
        std::fs::write(&path, "ID,Tenant\r\n7,a\r\n\r\n8,\"b,c\"\r\n").expect("written");
        assert_eq!(keys(&two, &[], Some(&path)).expect("keys"), [["a", "7"], ["b,c", "8"]]);
        std::fs::write(&path, "id\n7\nid\n").expect("written");
        assert_eq!(keys(&one, &names(&["5"]), Some(&path)).expect("keys"), [["5"], ["7"], ["id"]]);
    }

    #[test]
    fn what_is_no_key_is_refused_without_its_values() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keys.csv");
        let two = names(&["tenant", "id"]);
        let refused = |text: &[u8]| {
            std::fs::write(&path, text).expect("written");
            keys(&two, &[], Some(&path)).expect_err("refused").to_string()
        };
        let why = refused(b"secret,7\nsecret,7,8\n");
        assert!(why.ends_with("line 2: the key has 2 columns, and 3 values were given"), "{why}");
        assert!(refused(b"\xff,7\n").ends_with("cannot be read as CSV in UTF-8"));
        assert_eq!(refused(b"tenant,id\n"), "no key was given");
        let missing = keys(&two, &[], Some(Path::new("none"))).expect_err("refused").to_string();
        assert!(missing.starts_with("none cannot be read"), "{missing}");
        let refused = keys(&two, &names(&["a,7\nb,8"]), None).expect_err("refused").to_string();
        assert_eq!(refused, "key 1 of the command line is not one key");
    }
}
