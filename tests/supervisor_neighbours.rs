//! What one user's processes do to the calls of another's: beside bombs of processes, of computing and of memory.
//!
//! A call waits 20 ms, as a tool does for Forgejo, and three times for the processor. Both measures are of one run on one
//! machine, without and with the bomb; what is compared is the slowest call in a hundred. Needs root.

#![expect(clippy::expect_used, reason = "helpers of tests fail the test")]

#[cfg(test)]
use std::time::{Duration, Instant};

use harness::cgroups::{OwnCgroup, limits_hold};
use harness::supervised::{Client, Kid, Supervised, Surroundings};

/// Calls of a measure.
const CALLS: usize = 200;
/// What else the machine does makes both measures worse, and not evenly. What the bomb does, it does each time.
const ROUNDS: usize = 4;

/// The slowest call in a hundred.
async fn p99(kid: &mut Kid) -> Duration {
    let mut took = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let begun = Instant::now();
        kid.tell("call").await;
        assert_eq!(kid.line().await, "done");
        took.push(begun.elapsed());
    }
    took.sort_unstable();
    took.get(CALLS * 99 / 100).copied().expect("calls")
}

/// What is done to the neighbours, with the policy under which it is at its worst and how one sees that it has begun.
struct Bomb {
    command: &'static str,
    policy: &'static str,
    has_begun: fn(&OwnCgroup) -> bool,
}

const BOMBS: [Bomb; 6] = [
    // pids_max, by default.
    Bomb { command: "bomb", policy: "", has_begun: |own| processes(own) == 128 },
    Bomb { command: "spin 16", policy: "", has_begun: |own| processes(own) == 17 },
    Bomb { command: "hop", policy: "", has_begun: |own| processes(own) > 1 },
    Bomb { command: "storm", policy: "", has_begun: |own| processes(own) > 1 },
    // It meets the limit of the data of one process, and touches what it has for ever.
    Bomb { command: "hoard", policy: "data = \"64MiB\"\n", has_begun: |own| memory(own) > 50 << 20 },
    // It meets the limit of all its processes: the kernel looks for pages to free, finds none, and kills.
    Bomb { command: "hoard", policy: "memory_max = \"64MiB\"\n", has_begun: |own| memory(own) > 50 << 20 },
];

fn processes(own: &OwnCgroup) -> u64 {
    own.read("children/tenant-1/pids.current").parse().unwrap_or_default()
}

fn memory(own: &OwnCgroup) -> u64 {
    own.read("children/tenant-1/memory.current").parse().unwrap_or_default()
}

/// What a neighbour's calls take without the bomb and beside it, measured until it is less than twice as long.
async fn beside(bomb: &Bomb, own: &OwnCgroup) -> Vec<(Duration, Duration)> {
    // The kernel that has the controllers may have one processor: the same share of it as the default is of two.
    let policy = format!("{}[limits]\ncpu_max = 50\n{}", own.policy(), bomb.policy);
    let supervised = Supervised::start_as_root(&harness::program("leftovers"), Surroundings::default(), &policy);
    let mut client = Client::connect(&supervised).await;
    let mut neighbour = client.spawn(2).await;
    let mut measured = Vec::new();
    for _ in 0..ROUNDS {
        let undisturbed = p99(&mut neighbour).await;
        let mut bombing = client.spawn(1).await;
        bombing.tell(bomb.command).await;
        let begun = async {
            while !(bomb.has_begun)(own) {
                harness::look_again().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), begun).await.expect("the bomb does what it is for");
        let beside = p99(&mut neighbour).await;
        client.stop(&mut bombing).await;
        // What else the machine does may have begun meanwhile.
        let undisturbed = undisturbed.max(p99(&mut neighbour).await);
        measured.push((undisturbed, beside));
        if beside < 2 * undisturbed {
            break;
        }
    }
    measured
}

#[tokio::test]
async fn beside_a_bomb_of_any_kind_a_neighbours_calls_take_less_than_twice_as_long() {
    let test = "beside_a_bomb_of_any_kind_a_neighbours_calls_take_less_than_twice_as_long";
    let Some(own) = limits_hold(test) else { return };
    for bomb in &BOMBS {
        let measured = beside(bomb, &own).await;
        println!("{}: undisturbed, and beside it: {measured:?}", bomb.command);
        assert!(measured.iter().any(|(undisturbed, beside)| *beside < 2 * *undisturbed), "each time too slow");
    }
}
