//! Mistakes that one could make in this design. Each is a variant of the model, and each must be caught: a model
//! that lets one of them pass proves nothing about the rest.

/// The design, or one mistake in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// The design as it is.
    None,
    /// The append looks at its life's row but takes no lock on it, so a takeover walks past an append under way.
    UnlockedFence,
    /// Takeover, claim and reading the journal are one statement: its snapshot is older than its wait.
    OneSnapshot,
    /// The call goes out while its `started` is still being written.
    IntentAfterEffect,
    /// A step whose attempt failed counts as not applied, so nothing undoes it.
    UndoSkippedForFailed,
    /// There is no primary key (run, seq).
    NoUniqueIndex,
    /// The run is given back in one commit, and its terminal event follows in another.
    ReleasedBeforeTheEnd,
    /// The renewal does not ask whether the life has ended.
    RenewedAfterTheEnd,
    /// An operator's retry begins a new generation under the old idempotency key.
    RetriedUnderTheOldKey,
    /// An operator's retry is written into the journal by whoever took the request, past the owner and the fence.
    RetriedPastTheOwner,
    /// The start of a retry takes whatever sequence number is free when it commits, instead of the one that it
    /// was decided at.
    StartAtAnySeq,
    /// Failures are counted in the node's memory, so a takeover counts from zero.
    FailuresCountedInMemory,
    /// A probe without an answer is taken for "absent".
    UnknownIsAbsent,
    /// "Absent" is trusted at once, though the old call may still land.
    AbsentTrustedTooEarly,
    /// The append is bound to its node's life only, not to the claim that it was decided under.
    AppendNotBoundToClaim,
    /// A call is started without a look at how much of the lease is left.
    CallWithoutLease,
    /// A node whose claim was granted but whose answer was lost never looks for runs that it owns.
    ClaimForgotten,
    /// After an answer that was lost the owner reads once. The statement may still be under way then.
    NeverLooksAgain,
    /// A run is given back by whoever owns it, without a look at whether the journal is still the one that this
    /// was decided on.
    ReleasedByAnOldCopy,
    /// The inbox does not make a run claimable that was released to wait for its operator.
    InboxWakesNobody,
}
