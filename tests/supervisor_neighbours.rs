//! What one user's processes do to the calls of another's: beside a fork bomb that fills its limit and goes on trying.
//!
//! A call waits 20 ms, as a tool does for Forgejo, and three times for the processor. Both measures are of one run on one
//! machine, without and with the bomb; what is compared is the slowest call in a hundred. Needs root.

#![expect(clippy::expect_used, reason = "helpers of tests fail the test")]

#[cfg(test)]
use std::time::{Duration, Instant};

use harness::cgroups::limits_hold;
use harness::supervised::{Client, Kid, Supervised, Surroundings};

/// Calls of a measure.
const CALLS: usize = 300;
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

#[tokio::test]
async fn beside_a_fork_bomb_a_neighbours_calls_take_less_than_twice_as_long() {
    let test = "beside_a_fork_bomb_a_neighbours_calls_take_less_than_twice_as_long";
    let Some(own) = limits_hold(test) else { return };
    // The kernel that has the controllers may have one processor: the same share of it as the default is of two.
    let policy = format!("{}[limits]\ncpu_max = 50\n", own.policy());
    let supervised = Supervised::start_as_root(&harness::program("leftovers"), Surroundings::default(), &policy);
    let mut client = Client::connect(&supervised).await;
    let mut neighbour = client.spawn(2).await;
    let mut measured = Vec::new();
    for _ in 0..ROUNDS {
        let undisturbed = p99(&mut neighbour).await;
        let mut bomb = client.spawn(1).await;
        bomb.tell("bomb").await;
        let full = async {
            // pids_max, by default.
            while own.read("children/tenant-1/pids.current") != "128" {
                harness::look_again().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), full).await.expect("the bomb fills its limit");
        let beside = p99(&mut neighbour).await;
        client.stop(&mut bomb).await;
        println!("undisturbed {undisturbed:?}, beside a bomb {beside:?}");
        if beside < 2 * undisturbed {
            return;
        }
        measured.push((undisturbed, beside));
    }
    panic!("undisturbed, and beside a bomb, each time too slow: {measured:?}");
}
