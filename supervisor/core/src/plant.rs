//! Bugs that the simulator plants to prove that its checkers find them. Without the feature `plant` none can exist:
//! [`Planted::has`] is then a constant `false`.

/// What is planted into a node: nothing, or one [`Bug`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Planted {
    #[cfg(feature = "plant")]
    bug: Option<Bug>,
}

impl Planted {
    /// One bug.
    #[cfg(feature = "plant")]
    pub fn one(bug: Bug) -> Planted {
        Planted { bug: Some(bug) }
    }

    /// Whether this bug is planted.
    #[inline]
    pub fn has(self, bug: Bug) -> bool {
        #[cfg(feature = "plant")]
        return self.bug == Some(bug);
        #[cfg(not(feature = "plant"))]
        {
            let _ = bug;
            false
        }
    }
}

/// A bug that can be planted into a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bug {
    /// The owner uses its lease to the last microsecond, as if clocks ran equally fast.
    SkipMargin,
    /// A granter forgets that another owner's grant still runs.
    GrantTwice,
    /// A granter grants as soon as it has started, although it may have granted before.
    NoSilence,
    /// Epochs seen are forgotten at a restart.
    ForgetEpoch,
    /// A conflict that is heard leads to no announcement.
    NoReannounce,
    /// A peer that does not hear us counts as one that does.
    IgnoreOneWay,
    /// A datagram that does not echo our session is believed.
    BelieveStale,
    /// A lone survivor takes the VIP although somebody answers for it.
    LoneWithoutProbe,
    /// A node keeps the VIP although it is unfit.
    KeepUnfit,
    /// The relay ring keeps dead nodes.
    RingKeepsDead,
    /// The relay ring loses nodes that live but send no heartbeat.
    RingLosesSilent,
    /// What a node carries that only stands still is reset.
    ResetStunned,
    /// The old owner takes the address off before its successor is there.
    BreakBeforeMake,
    /// A failed command is taken as done.
    IgnoreFailure,
    /// A decision is taken without a word.
    Silent,
    /// A higher epoch does not end an ownership.
    IgnoreHigherEpoch,
    /// The lease is counted from the receipt of a grant instead of from the sending of the claim.
    LeaseFromReceipt,
    /// A node takes its turn although another one does not serve.
    TurnAlone,
    /// A node gives its turn back before it serves again.
    GiveBackDrained,
    /// A node that is past draining does not look at the others again before it restarts.
    ActBlindly,
    /// A new system is blessed although no peer has seen it serve.
    BlessUnseen,
    /// A new system that nobody sees serve is never given up.
    TrialForEver,
    /// A node that is drained stays so when the rollout is paused.
    StayDrained,
    /// What is not confirmed is not taken back.
    NeverRevert,
    /// A node that is silent for ever is waited for.
    WaitForEver,
    /// The shell says that a request is committed when its own disk alone has it.
    CommitAlone,
    /// The shell gives a boot entry its name before the slot is written.
    EntryFirst,
    /// A holder of a singleton counts its lease from the grant instead of from the asking.
    SingletonFromGrant,
    /// A singleton's lease is asked for before the whole term has passed.
    SingletonEarly,
}

impl Bug {
    /// Those of VIPs and leases.
    pub const ALL: [Bug; 17] = [
        Bug::SkipMargin,
        Bug::GrantTwice,
        Bug::NoSilence,
        Bug::ForgetEpoch,
        Bug::NoReannounce,
        Bug::IgnoreOneWay,
        Bug::BelieveStale,
        Bug::LoneWithoutProbe,
        Bug::KeepUnfit,
        Bug::RingKeepsDead,
        Bug::RingLosesSilent,
        Bug::ResetStunned,
        Bug::BreakBeforeMake,
        Bug::IgnoreFailure,
        Bug::Silent,
        Bug::IgnoreHigherEpoch,
        Bug::LeaseFromReceipt,
    ];
    /// Those of rollouts, slots and singletons.
    pub const OF_ROLLOUTS: [Bug; 12] = [
        Bug::TurnAlone,
        Bug::GiveBackDrained,
        Bug::ActBlindly,
        Bug::BlessUnseen,
        Bug::TrialForEver,
        Bug::StayDrained,
        Bug::NeverRevert,
        Bug::WaitForEver,
        Bug::CommitAlone,
        Bug::EntryFirst,
        Bug::SingletonFromGrant,
        Bug::SingletonEarly,
    ];
}
