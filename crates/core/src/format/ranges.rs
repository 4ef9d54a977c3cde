//! Sets of numbers held as runs, so that memory grows only with the number of gaps.

use std::collections::BTreeMap;

/// A set of numbers, held as runs: first number to last number. Runs never touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeSet(BTreeMap<u64, u64>);

impl RangeSet {
    pub(crate) fn insert(&mut self, number: u64) {
        let before = self
            .0
            .range(..=number)
            .next_back()
            .map(|(first, last)| (*first, *last));
        let first = match before {
            Some((_, last)) if last >= number => return,
            Some((first, last)) if last + 1 == number => first,
            _ => number,
        };
        let last = number.checked_add(1).and_then(|next| self.0.remove(&next));
        self.0.insert(first, last.unwrap_or(number));
    }

    /// Adds all numbers from `first` to `last`; none where `last` is the smaller one.
    pub fn insert_range(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        self.remove_range(first, last);
        let mut run = (first, last);
        if let Some((before, end)) = self.0.range(..first).next_back().map(|(a, b)| (*a, *b))
            && end + 1 == first
        {
            run.0 = before;
        }
        if let Some(end) = last.checked_add(1).and_then(|next| self.0.remove(&next)) {
            run.1 = end;
        }
        self.0.insert(run.0, run.1);
    }

    /// Takes out all numbers from `first` to `last`.
    pub fn remove_range(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        let touched: Vec<(u64, u64)> = self
            .0
            .range(..=last)
            .rev()
            .take_while(|(_, end)| **end >= first)
            .map(|(begin, end)| (*begin, *end))
            .collect();
        for (begin, end) in touched {
            self.0.remove(&begin);
            if begin < first {
                self.0.insert(begin, first - 1);
            }
            if end > last {
                self.0.insert(last + 1, end);
            }
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (first, last) in other.iter() {
            self.insert_range(first, last);
        }
    }

    /// Takes out all numbers of another set.
    pub fn subtract(&mut self, other: &Self) {
        for (first, last) in other.iter() {
            self.remove_range(first, last);
        }
    }

    /// The numbers that are in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut outside = self.clone();
        outside.subtract(other);
        let mut both = self.clone();
        both.subtract(&outside);
        both
    }

    /// The runs, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().map(|(first, last)| (*first, *last))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The smallest number.
    #[must_use]
    pub fn first(&self) -> Option<u64> {
        self.0.first_key_value().map(|(first, _)| *first)
    }

    /// The largest number.
    #[must_use]
    pub fn last(&self) -> Option<u64> {
        self.0.last_key_value().map(|(_, last)| *last)
    }

    pub(crate) fn count(&self) -> u64 {
        self.iter().map(|(first, last)| last - first + 1).sum()
    }

    pub(crate) fn contains(&self, number: u64) -> bool {
        self.end_of_run(number).is_some()
    }

    /// The end of the run that a number lies in.
    pub(crate) fn end_of_run(&self, number: u64) -> Option<u64> {
        let (_, last) = self.0.range(..=number).next_back()?;
        (*last >= number).then_some(*last)
    }

    /// The first number held that is this one or a larger one.
    pub(crate) fn first_from(&self, number: u64) -> Option<u64> {
        match self.end_of_run(number) {
            Some(_) => Some(number),
            None => self.0.range(number..).next().map(|(first, _)| *first),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Change {
        Insert(u64),
        InsertRange(u64, u64),
        RemoveRange(u64, u64),
    }

    fn any_change() -> impl Strategy<Value = Change> {
        prop_oneof![
            (0..40_u64).prop_map(Change::Insert),
            (0..40_u64, 0..12_u64).prop_map(|(first, more)| Change::InsertRange(first, first + more)),
            (0..40_u64, 0..12_u64).prop_map(|(first, more)| Change::RemoveRange(first, first + more)),
        ]
    }

    fn built(changes: &[Change]) -> (RangeSet, BTreeSet<u64>) {
        let (mut ranges, mut plain) = (RangeSet::default(), BTreeSet::new());
        for change in changes {
            match *change {
                Change::Insert(number) => {
                    ranges.insert(number);
                    plain.insert(number);
                }
                Change::InsertRange(first, last) => {
                    ranges.insert_range(first, last);
                    plain.extend(first..=last);
                }
                Change::RemoveRange(first, last) => {
                    ranges.remove_range(first, last);
                    plain.retain(|number| !(first..=last).contains(number));
                }
            }
        }
        (ranges, plain)
    }

    fn numbers(ranges: &RangeSet) -> BTreeSet<u64> {
        ranges.iter().flat_map(|(first, last)| first..=last).collect()
    }

    proptest! {
        #[test]
        fn it_holds_what_a_plain_set_holds(
            one in prop::collection::vec(any_change(), 0..30),
            other in prop::collection::vec(any_change(), 0..30),
        ) {
            let ((one, plain_one), (other, plain_other)) = (built(&one), built(&other));
            prop_assert_eq!(numbers(&one), plain_one.clone());
            prop_assert_eq!(one.count(), plain_one.len() as u64);
            let runs: Vec<_> = one.iter().collect();
            prop_assert!(runs.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "runs touch: {:?}", runs);
            let both: BTreeSet<u64> = plain_one.intersection(&plain_other).copied().collect();
            prop_assert_eq!(numbers(&one.intersection(&other)), both);
            let mut difference = one.clone();
            difference.subtract(&other);
            prop_assert_eq!(numbers(&difference), plain_one.difference(&plain_other).copied().collect());
            let mut union = one.clone();
            union.add(&other);
            prop_assert_eq!(numbers(&union), plain_one.union(&plain_other).copied().collect());
        }
    }

    #[test]
    fn its_ends_are_those_of_the_first_and_the_last_run() {
        let mut ranges = RangeSet::default();
        assert!(ranges.is_empty());
        assert_eq!((ranges.first(), ranges.last()), (None, None));
        ranges.insert_range(5, 6);
        ranges.insert(9);
        assert!(!ranges.is_empty());
        assert_eq!((ranges.first(), ranges.last()), (Some(5), Some(9)));
    }

    #[test]
    fn the_largest_number_is_a_number_like_any_other() {
        let mut ranges = RangeSet::default();
        ranges.insert_range(5, u64::MAX);
        ranges.insert(u64::MAX);
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [(5, u64::MAX)]);
        ranges.remove_range(6, u64::MAX);
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [(5, 5)]);
    }
}
