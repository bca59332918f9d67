//! What a workflow that is a file, and what it is given, may not exceed. A plan has limits of its own.

/// Bytes of a file.
pub const FILE_BYTES: usize = 1 << 20;
/// Files of one directory.
pub const FILES: usize = 1_000;
/// Values of a file.
pub const NODES: usize = 50_000;
/// Nesting of a file.
pub const DEPTH: usize = 48;
/// Bytes of one text, in a file, in an input or made by an expression.
pub const TEXT: usize = 64 << 10;
/// Bytes of an input.
pub const INPUT_BYTES: usize = 256 << 10;
/// Nesting of an input.
pub const INPUT_DEPTH: usize = 16;
/// Values of one list of an input.
pub const LIST: usize = 5_000;
/// Bytes of an expression.
pub const EXPRESSION: usize = 1_000;
/// Words and signs of an expression.
pub const WORDS: usize = 120;
/// Brackets within brackets of an expression.
pub const NESTING: usize = 16;
/// Instructions that one expression may take.
pub const FUEL: u64 = 10_000;
/// Bytes of what an expression gives.
pub const RESULT: usize = 512 << 10;
/// Bytes that all expressions of one expansion may read and make.
pub const WORK: usize = 64 << 20;
/// What it counts to follow one step to another; so many dependencies are followed half a million times in all.
pub const WORK_OF_A_STEP: usize = 128;
/// `each` within `each`.
pub const EACH: usize = 3;
/// Steps as they are written in a file.
pub const WRITTEN_STEPS: usize = 1_000;
/// Passes through all `each` of one expansion, steps or none.
pub const PASSES: usize = 20_000;
/// Inputs that a file is tried with when it is loaded.
pub const TRIES: usize = 64;
/// Steps of all plans that are made to try a file; when there are more, or more than [`WORK`] was done for them, no more
/// inputs are made up.
pub const TRIED_STEPS: usize = 20_000;
