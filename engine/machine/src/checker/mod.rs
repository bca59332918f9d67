//! Rules about whole histories.
