//! Rows in the order in which they came, as a table without a key has them: the daemon's. In a file they are a list.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::table::{Moved, Row, Table, Tie};

/// Numbered by their coming.
#[derive(Clone, Debug)]
pub struct List<V>(Table<u64, V>);

impl<V: Row> List<V> {
    /// One more, behind the others.
    pub fn push(&mut self, row: V) {
        let next = self.0.last_key_value().map_or(0, |(last, _)| last + 1);
        self.0.insert(next, row);
    }

    /// All of them.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &V> {
        self.0.values()
    }

    /// All of them, to change: as dear as the list is long, as are the two below.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.0.values_mut()
    }

    /// Keeps some.
    pub fn retain(&mut self, mut keep: impl FnMut(&V) -> bool) {
        self.0.retain(|_, row| keep(row));
    }

    /// Takes all away.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those that are tied to something, in their order.
    pub fn tied<'a>(&'a self, tie: &Tie) -> impl DoubleEndedIterator<Item = &'a V> + use<'a, V> {
        self.0.tied(tie)
    }

    /// The first that is tied to something.
    pub fn first(&self, tie: &Tie) -> Option<&V> {
        self.tied(tie).next()
    }

    /// The same, to change.
    pub fn first_mut(&mut self, tie: &Tie) -> Option<&mut V> {
        let key = self.0.entries(tie).into_keys().next().copied()?;
        self.0.get_mut(&key)
    }

    /// Takes those away that are tied to something.
    pub fn remove(&mut self, tie: &Tie) {
        let keys: Vec<u64> = self.0.entries(tie).into_keys().copied().collect();
        for key in keys {
            self.0.remove(&key);
        }
    }

    /// See [`Table::settle`].
    pub fn settle(&mut self) -> Moved<u64> {
        self.0.settle()
    }

    /// See [`Table::is_settled`].
    pub fn is_settled(&self) -> bool {
        self.0.is_settled()
    }
}

impl<V> FromIterator<V> for List<V> {
    fn from_iter<I: IntoIterator<Item = V>>(rows: I) -> Self {
        List((0..).zip(rows).collect())
    }
}

impl<V> Default for List<V> {
    fn default() -> Self {
        List(Table::default())
    }
}

impl<V: Serialize> Serialize for List<V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.values())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for List<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Vec::deserialize(deserializer)?.into_iter().collect())
    }
}
