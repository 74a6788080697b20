//! Ranges of names in which the files and folders of a time can be, for listings that begin and end at
//! a name.

use chrono::{DateTime, Datelike, Duration, NaiveDate, Utc};
use chrono_tz::Tz;

use crate::layout::cdc_file_time;
use crate::layout::date_folders::{TRANSACTION_FILE, YEARS};
use crate::window::Window;

/// How far clocks are set back or forward, at most: local times in names can differ by so much from
/// those at the ends of a window.
const CLOCK_CHANGE: Duration = Duration::hours(3);

/// The base names of CDC files of one form that can have a time in a window.
#[derive(Debug)]
pub struct CdcNames {
    /// What comes before the date.
    pub lead: &'static str,
    /// No name of the window is before this one.
    pub start: String,
    /// All names of the window are before this one.
    pub end: String,
    /// The end of all names of this form.
    pub end_of_form: String,
}

/// The names of CDC files in a window, in all forms that [`cdc_file_time`] reads. `None` if there is no
/// such name, because an end of the window is outside of the years that names can have.
pub fn cdc_names(window: &Window, zone: Tz) -> Option<[CdcNames; 2]> {
    let local = |at: DateTime<Utc>| at.with_timezone(&zone).naive_local();
    let start = local(window.start).checked_sub_signed(CLOCK_CHANGE)?;
    let end = local(window.end).checked_add_signed(CLOCK_CHANGE)?;
    if !YEARS.contains(&start.year()) || !YEARS.contains(&end.year()) {
        return None;
    }
    let names = |lead: &'static str, format: &str| CdcNames {
        lead,
        start: format!("{lead}{}", start.format(format)),
        end: format!("{lead}{}", end.format(format)),
        end_of_form: format!("{lead}{}", YEARS.end() / 100 + 1),
    };
    Some([names("", "%Y%m%d-%H%M%S"), names(TRANSACTION_FILE, "%Y%m%d%H%M%S")])
}

impl CdcNames {
    /// Whether a base name is one of a CDC file of this form.
    pub fn has_form(&self, name: &str, zone: Tz) -> bool {
        let is_transaction = name.starts_with(TRANSACTION_FILE);
        is_transaction != self.lead.is_empty() && cdc_file_time(name, zone).is_some()
    }
}

/// The ranges of names, from the first on and before the second, in which the date folders of a day
/// can be whose names begin with a year or a day: see [`folder_span`](crate::layout::folder_span).
/// Files of the day do not have such names.
pub fn date_folder_names(day: NaiveDate) -> [(String, String); 7] {
    let of = |format: &str| day.format(format).to_string();
    let range = |lead: &str, from: char, to: char| (format!("{lead}{from}"), format!("{lead}{to}"));
    let [year, month, whole] = ["%Y", "%Y%m", "%Y%m%d"].map(of);
    let [day, reversed] = ["%d", "%d%m%Y"].map(of);
    [
        // 2021-11-23, 2021/11/23; 2021_11_23.
        range(&year, '-', '0'),
        range(&year, '_', '`'),
        // 202111.
        range(&month, '/', '0'),
        // 20211123, 2021112301.
        range(&whole, '/', '3'),
        // 23-11-2021, 23/11/2021; 23_11_2021; 23112021.
        range(&day, '-', '0'),
        range(&day, '_', '`'),
        range(&reversed, '/', '0'),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::folder_may_hold;

    #[test]
    fn the_names_of_a_window_are_those_whose_time_is_in_it() {
        let zone = Tz::Europe__Berlin;
        let at = |text: &str| text.parse::<DateTime<Utc>>().expect("a time");
        // Clocks are set back in between.
        let window = Window::new(at("2024-10-26T00:00:00Z"), at("2024-10-28T00:00:00Z"));
        let window = window.expect("a window");
        let [plain, transactions] = cdc_names(&window, zone).expect("names");
        let mut time = window.start - Duration::days(2);
        while time < window.end + Duration::days(2) {
            let local = time.with_timezone(&zone);
            for (form, name) in [
                (&plain, local.format("%Y%m%d-%H%M%S000.parquet").to_string()),
                (&transactions, local.format("CDC_TXN-%Y%m%d%H%M%S000.csv").to_string()),
            ] {
                assert!(form.has_form(&name, zone), "{name}");
                let read = cdc_file_time(&name, zone).expect("a time");
                if window.contains(read) {
                    assert!(form.start <= name && name < form.end, "{name}");
                }
                assert!(name < form.end_of_form);
            }
            time += Duration::minutes(7);
        }
    }

    #[test]
    fn every_date_folder_that_begins_with_a_year_or_a_day_is_in_a_range_of_its_day() {
        let mut day = NaiveDate::from_ymd_opt(2023, 11, 25).expect("a day");
        for _ in 0..400 {
            let ranges = date_folder_names(day);
            for format in [
                "%Y",
                "%Y-%m-%d",
                "%Y_%m_%d",
                "%Y%m%d",
                "%Y-%m-%d-%H",
                "%Y_%m_%d_%H",
                "%Y%m%d%H",
                "%Y-%m",
                "%Y_%m",
                "%Y%m",
                "%d",
                "%d-%m-%Y",
                "%d_%m_%Y",
                "%d%m%Y",
            ] {
                let folder = day.and_hms_opt(21, 0, 0).expect("a time").format(format).to_string();
                if format != "%d" {
                    assert!(folder_may_hold(&folder, Tz::UTC).is_some(), "{folder}");
                }
                let key = format!("{folder}/20240101-000000000.parquet");
                let mut ranges = ranges.iter();
                assert!(ranges.any(|(start, end)| *start <= key && key < *end), "{folder}");
            }
            day = day.succ_opt().expect("a day");
        }
    }
}
