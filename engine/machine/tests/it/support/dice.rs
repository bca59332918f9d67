//! Where a test has a choice, it asks here: the same test then runs every choice there is, or a random one.

/// Answers questions of the form "which of these n?".
#[derive(Clone, Debug)]
pub enum Dice {
    /// Always the first.
    First,
    /// Always the last.
    Last,
    /// By chance, from a seed.
    Random(u64),
    /// All sequences of choices, one a run: the answers so far, how many there were of each, and the place.
    All { taken: Vec<(usize, usize)>, at: usize },
}

impl Dice {
    pub fn all() -> Self {
        Self::All { taken: Vec::new(), at: 0 }
    }

    pub fn pick(&mut self, n: usize) -> usize {
        assert!(n > 0, "there is nothing to choose from");
        match self {
            Dice::First => 0,
            Dice::Last => n - 1,
            Dice::Random(seed) => {
                *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut bits = *seed;
                bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                ((bits ^ (bits >> 31)) % n as u64) as usize
            }
            Dice::All { taken, at } => {
                if *at == taken.len() {
                    taken.push((0, n));
                }
                let (choice, of) = taken[*at];
                assert_eq!(of, n, "the same choices lead to the same question");
                *at += 1;
                choice
            }
        }
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.pick(100) < percent
    }

    /// The next sequence of choices; `None` after the last.
    pub fn next(self) -> Option<Self> {
        let Dice::All { mut taken, .. } = self else { return None };
        while let Some((choice, of)) = taken.pop() {
            if choice + 1 < of {
                taken.push((choice + 1, of));
                return Some(Dice::All { taken, at: 0 });
            }
        }
        None
    }
}
