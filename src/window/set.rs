//! A set of windows.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::Window;

/// The instants of any number of windows.
///
/// Its windows are ascending, and neither overlap, touch, nor are empty: two sets with the same
/// instants are equal, whatever windows they were made of. It is serialized as the list of its
/// windows, and read from any list of windows.
///
/// ```
/// # use glueless::window::{Window, WindowSet, parse_instant};
/// # let day = |first, end| Window { start: parse_instant(first).unwrap(), end: parse_instant(end).unwrap() };
/// let (monday, tuesday) = (day("2019-04-01", "2019-04-02"), day("2019-04-02", "2019-04-03"));
/// let mut run = WindowSet::from(tuesday);
/// run.insert(monday);
/// assert!(run.covers(&day("2019-04-01", "2019-04-03")));
/// assert_eq!(run.subtracting(&monday.into()), tuesday.into());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Window>", into = "Vec<Window>")]
pub struct WindowSet(Vec<Window>);

impl WindowSet {
    /// The windows, ascending.
    pub fn iter(&self) -> std::slice::Iter<'_, Window> {
        self.0.iter()
    }

    /// The number of windows: 1 for windows that touch one another.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no instant is in the set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds the instants of a window.
    pub fn insert(&mut self, window: Window) {
        if window.start >= window.end {
            return;
        }
        let from = self.0.partition_point(|one| one.end < window.start);
        let to = self.0.partition_point(|one| one.start <= window.end);
        let joined = self.0[from..to].iter().fold(window, |joined, one| joined.span(one));
        self.0.splice(from..to, [joined]);
    }

    /// The instants in either set.
    pub fn union(&self, other: &WindowSet) -> WindowSet {
        self.iter().chain(other).copied().collect()
    }

    /// The instants of this set that are in a window.
    pub fn within(&self, window: &Window) -> WindowSet {
        self.overlapping(window).iter().filter_map(|one| one.intersection(window)).collect()
    }

    /// The instants of this set that are not in `other`.
    pub fn subtracting(&self, other: &WindowSet) -> WindowSet {
        let mut left = Vec::new();
        for one in self {
            let mut start = one.start;
            for taken in other.overlapping(one) {
                if start < taken.start {
                    left.push(Window { start, end: taken.start });
                }
                start = taken.end;
            }
            if start < one.end {
                left.push(Window { start, end: one.end });
            }
        }
        WindowSet(left)
    }

    /// The instants between the windows.
    pub fn gaps(&self) -> WindowSet {
        let pairs = self.0.windows(2);
        WindowSet(pairs.map(|pair| Window { start: pair[0].end, end: pair[1].start }).collect())
    }

    /// The smallest window that covers the set; `None` for the empty set.
    pub fn span(&self) -> Option<Window> {
        Some(self.0.first()?.span(self.0.last()?))
    }

    /// Whether an instant is in the set.
    pub fn contains(&self, instant: DateTime<Utc>) -> bool {
        let next = self.0.partition_point(|one| one.end <= instant);
        self.0.get(next).is_some_and(|one| one.contains(instant))
    }

    /// Whether every instant of a window is in the set.
    pub fn covers(&self, window: &Window) -> bool {
        self.overlapping(window).first().is_some_and(|one| one.covers(window))
    }

    /// Whether some instant of a window is in the set.
    pub fn overlaps(&self, window: &Window) -> bool {
        !self.overlapping(window).is_empty()
    }

    /// The windows of the set that overlap a window.
    fn overlapping(&self, window: &Window) -> &[Window] {
        let from = self.0.partition_point(|one| one.end <= window.start);
        let to = self.0.partition_point(|one| one.start < window.end);
        &self.0[from..to.max(from)]
    }
}

impl FromIterator<Window> for WindowSet {
    fn from_iter<I: IntoIterator<Item = Window>>(windows: I) -> Self {
        let is_some = |window: &Window| window.start < window.end;
        let mut windows: Vec<Window> = windows.into_iter().filter(is_some).collect();
        windows.sort_by_key(|window| window.start);
        windows.dedup_by(|next, last| {
            let touches = next.start <= last.end;
            if touches {
                last.end = last.end.max(next.end);
            }
            touches
        });
        WindowSet(windows)
    }
}

impl From<Vec<Window>> for WindowSet {
    fn from(windows: Vec<Window>) -> Self {
        windows.into_iter().collect()
    }
}

impl From<Window> for WindowSet {
    fn from(window: Window) -> Self {
        WindowSet::from_iter([window])
    }
}

impl From<WindowSet> for Vec<Window> {
    fn from(set: WindowSet) -> Self {
        set.0
    }
}

impl<'a> IntoIterator for &'a WindowSet {
    type Item = &'a Window;
    type IntoIter = std::slice::Iter<'a, Window>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::Duration;
    use proptest::prelude::*;

    /// The model: bit `i` is the hour `i` of a day and a half.
    const HOURS: u32 = 36;

    fn hour(number: u32) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + Duration::hours(number.into())
    }

    fn window(hours: (u32, u32)) -> Window {
        Window { start: hour(hours.0), end: hour(hours.1) }
    }

    fn bits(hours: (u32, u32)) -> u64 {
        (hours.0..hours.1).map(|number| 1 << number).sum()
    }

    fn bits_of(set: &WindowSet) -> u64 {
        (0..HOURS).filter(|number| set.contains(hour(*number))).map(|number| 1 << number).sum()
    }

    /// Hours from one to another, which may be none.
    fn hours() -> impl Strategy<Value = (u32, u32)> {
        (0..HOURS, 0..=8u32).prop_map(|(start, count)| (start, (start + count).min(HOURS)))
    }

    fn assert_normalized(set: &WindowSet) {
        assert!(set.iter().all(|window| window.start < window.end), "{set:?}");
        assert!(set.0.windows(2).all(|pair| pair[0].end < pair[1].start), "{set:?}");
    }

    proptest! {
        #[test]
        fn a_set_is_what_a_set_of_hours_is(
            first in prop::collection::vec(hours(), 0..6),
            second in prop::collection::vec(hours(), 0..6),
            asked in hours(),
        ) {
            let model = |list: &[(u32, u32)]| list.iter().fold(0, |all, one| all | bits(*one));
            let one: WindowSet = first.iter().copied().map(window).collect();
            let mut other = WindowSet::default();
            second.iter().for_each(|hours| other.insert(window(*hours)));
            let (all, some) = (model(&first), model(&second));
            let between = one.span().map_or(0, |span| bits_of(&span.into())) & !all;
            for (set, bits) in [
                (&one, all),
                (&other, some),
                (&one.union(&other), all | some),
                (&one.subtracting(&other), all & !some),
                (&one.within(&window(asked)), all & bits(asked)),
                (&one.gaps(), between),
            ] {
                assert_normalized(set);
                prop_assert_eq!(bits_of(set), bits);
            }
            let collected: WindowSet = second.iter().copied().map(window).collect();
            prop_assert_eq!(&other, &collected);
            prop_assert_eq!(one.is_empty(), all == 0);
            if asked.0 < asked.1 {
                prop_assert_eq!(one.covers(&window(asked)), all & bits(asked) == bits(asked));
                prop_assert_eq!(one.overlaps(&window(asked)), all & bits(asked) != 0);
            }
        }
    }

    #[test]
    fn any_list_is_read_and_the_windows_are_written() {
        let list =
            [window((9, 20)), window((3, 5)), window((5, 6)), window((1, 2)), window((4, 6))];
        let text = serde_json::to_string(&list).expect("written");
        let set: WindowSet = serde_json::from_str(&text).expect("read");
        let normalized = [window((1, 2)), window((3, 6)), window((9, 20))];
        assert_eq!(
            serde_json::to_string(&set).expect("written"),
            serde_json::to_string(&normalized).expect("written")
        );
    }
}
