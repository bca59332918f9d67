//! Rows that are found by what they belong to, and that remember which of them were touched: so that a call costs the same in an
//! estate of thousands, and what is judged after a change is what the change can have moved.
//!
//! Whoever changes a row thinks of neither. A row says what it is tied to ([`Row::ties`]); the index follows once, when the
//! change is over ([`Table::settle`]). Until then the rows that were touched are asked themselves, so that a change sees its own
//! doing. A table that is new, copied, or was changed as a whole counts as touched in all of its rows.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::ops::Deref;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// What rows are found by. Which row has which is in `ties.rs`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tie {
    /// CloudStack says that it hangs at this VM.
    Attached(Uuid),
    /// It hangs at this VM.
    Plugged(Uuid),
    /// It is of this source: a replica.
    Source(String),
    /// LINSTOR's name for it.
    Resource(String),
    /// It is of this volume: what holds something of it.
    Volume(Uuid),
    /// It is of this VM: a snapshot of it.
    Vm(Uuid),
    /// It has a leg in this network.
    Network(Uuid),
    /// It runs on this host.
    RunsOn(Uuid),
    /// Its name, in lower case.
    Name(String),
    /// Its path in the inventory.
    Path(String),
    /// It has this tag.
    Tag(String, String),
    /// CloudStack says that it runs and it does not, or the other way round.
    Unlike,
    /// Of a volume: it hangs nowhere.
    Adrift,
    /// It is not yet over.
    Pending,
    /// It is over since then.
    Over(DateTime<Utc>),
    /// The daemon's names are texts: of an operation, of a volume, of a VM, of a device, of an export.
    Operation(Uuid),
    /// See `Operation`.
    VolumeName(String),
    /// See `Operation`.
    VmName(String),
    /// See `Operation`.
    Device(String),
    /// See `Operation`.
    Export(String),
}

/// What is in a table.
pub trait Row {
    /// All that it is found by, as it is now.
    fn ties(&self) -> Vec<Tie>;
}

/// Rows by their keys. To read it is a map; what changes a row goes through here.
#[derive(Debug)]
pub struct Table<K, V> {
    rows: BTreeMap<K, V>,
    /// As it was when the last change was over: who is tied to what, and to what somebody is tied.
    tied: BTreeMap<Tie, BTreeSet<K>>,
    ties: BTreeMap<K, Vec<Tie>>,
    touched: Touched<K>,
}

#[derive(Debug)]
enum Touched<K> {
    All,
    These(BTreeSet<K>),
}

/// What a change has touched.
#[derive(Debug)]
pub struct Moved<K> {
    /// Nobody knows: anything can be otherwise.
    pub all: bool,
    /// The rows, some of which may be gone now.
    pub keys: BTreeSet<K>,
    /// What these are tied to, and what they were tied to before.
    pub ties: BTreeSet<Tie>,
}

impl<K: Ord + Clone, V: Row> Table<K, V> {
    /// A row, to change.
    pub fn get_mut<Q>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
        Q: Ord + ToOwned<Owned = K> + ?Sized,
    {
        self.touch(key);
        self.rows.get_mut(key)
    }

    /// Puts a row there.
    pub fn insert(&mut self, key: K, row: V) -> Option<V> {
        self.touch(&key);
        self.rows.insert(key, row)
    }

    /// Takes a row away.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.touch(key);
        self.rows.remove(key)
    }

    /// All rows, to change: as dear as the table is large, as are the two below.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.touched = Touched::All;
        self.rows.values_mut()
    }

    /// Keeps some rows.
    pub fn retain(&mut self, keep: impl FnMut(&K, &mut V) -> bool) {
        self.touched = Touched::All;
        self.rows.retain(keep);
    }

    /// Takes all rows away.
    pub fn clear(&mut self) {
        *self = Table::default();
    }

    fn touch<Q>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Ord + ToOwned<Owned = K> + ?Sized,
    {
        if let Touched::These(keys) = &mut self.touched
            && !keys.contains(key)
        {
            keys.insert(key.to_owned());
        }
    }

    /// What was touched since the last change was over.
    pub fn touched(&self) -> Vec<K> {
        match &self.touched {
            Touched::All => self.rows.keys().cloned().collect(),
            Touched::These(keys) => keys.iter().cloned().collect(),
        }
    }

    /// The rows that are tied to something now, in the order of their keys.
    pub fn tied<'a>(&'a self, tie: &Tie) -> impl DoubleEndedIterator<Item = &'a V> + use<'a, K, V> {
        self.entries(tie).into_values()
    }

    /// The same with their keys.
    pub fn entries<'a>(&'a self, tie: &Tie) -> BTreeMap<&'a K, &'a V> {
        match &self.touched {
            Touched::All => self.rows.iter().filter(|(_, row)| row.ties().contains(tie)).collect(),
            Touched::These(touched) => {
                let still = self.tied.get(tie).into_iter().flatten().filter(|key| !touched.contains(*key));
                let row = |key| self.rows.get_key_value(key);
                let moved = touched.iter().filter_map(row).filter(|(_, row)| row.ties().contains(tie));
                still.filter_map(row).chain(moved).collect()
            }
        }
    }

    /// The change is over: the index follows.
    pub fn settle(&mut self) -> Moved<K> {
        let mut moved = Moved { all: false, keys: BTreeSet::new(), ties: BTreeSet::new() };
        match mem::replace(&mut self.touched, Touched::These(BTreeSet::new())) {
            Touched::All => {
                moved.all = true;
                (self.tied, self.ties) = indexed(&self.rows);
            }
            Touched::These(keys) => {
                keys.iter().for_each(|key| self.follow(key, &mut moved.ties));
                moved.keys = keys;
            }
        }
        moved
    }

    fn follow(&mut self, key: &K, seen: &mut BTreeSet<Tie>) {
        let now = self.rows.get(key).map(Row::ties).unwrap_or_default();
        let before = self.ties.get(key).map(Vec::as_slice).unwrap_or_default();
        seen.extend(now.iter().cloned());
        if before == now {
            return;
        }
        for tie in before {
            if let Some(keys) = self.tied.get_mut(tie) {
                keys.remove(key);
                if keys.is_empty() {
                    self.tied.remove(tie);
                }
            }
        }
        seen.extend(before.iter().cloned());
        for tie in &now {
            self.tied.entry(tie.clone()).or_default().insert(key.clone());
        }
        if now.is_empty() {
            self.ties.remove(key)
        } else {
            self.ties.insert(key.clone(), now)
        };
    }

    /// Whether the index is what the rows say: for checks.
    pub fn is_settled(&self) -> bool {
        let nothing_touched = matches!(&self.touched, Touched::These(keys) if keys.is_empty());
        let (tied, ties) = indexed(&self.rows);
        nothing_touched && self.tied == tied && self.ties == ties
    }

    /// The rows that are over since `then` at the latest, as it was when the last change was over.
    pub fn over_since(&self, then: DateTime<Utc>) -> impl Iterator<Item = &K> {
        let times = Tie::Over(DateTime::<Utc>::MIN_UTC)..=Tie::Over(then);
        self.tied.range(times).flat_map(|(_, keys)| keys)
    }
}

type Index<K> = (BTreeMap<Tie, BTreeSet<K>>, BTreeMap<K, Vec<Tie>>);

fn indexed<K: Ord + Clone, V: Row>(rows: &BTreeMap<K, V>) -> Index<K> {
    let (mut tied, mut ties): Index<K> = Default::default();
    for (key, row) in rows {
        let its = row.ties();
        for tie in &its {
            tied.entry(tie.clone()).or_default().insert(key.clone());
        }
        if !its.is_empty() {
            ties.insert(key.clone(), its);
        }
    }
    (tied, ties)
}

/// What reads reads the rows.
impl<K, V> Deref for Table<K, V> {
    type Target = BTreeMap<K, V>;

    fn deref(&self) -> &BTreeMap<K, V> {
        &self.rows
    }
}

impl<K, V> From<BTreeMap<K, V>> for Table<K, V> {
    fn from(rows: BTreeMap<K, V>) -> Self {
        Table { rows, tied: BTreeMap::new(), ties: BTreeMap::new(), touched: Touched::All }
    }
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Table::from(BTreeMap::new())
    }
}

/// A copy may be put anywhere: it counts as touched.
impl<K: Clone, V: Clone> Clone for Table<K, V> {
    fn clone(&self) -> Self {
        Table::from(self.rows.clone())
    }
}

impl<K: Ord, V> FromIterator<(K, V)> for Table<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(rows: I) -> Self {
        Table::from(rows.into_iter().collect::<BTreeMap<_, _>>())
    }
}

impl<K: Serialize, V: Serialize> Serialize for Table<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.rows.serialize(serializer)
    }
}

impl<'de, K: Ord + Deserialize<'de>, V: Deserialize<'de>> Deserialize<'de> for Table<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::deserialize(deserializer).map(Table::from)
    }
}
