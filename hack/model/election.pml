/*
 * Elector, lock and fence in one model, for the model checker Spin; README.md
 * says how to read it and what it shows.
 *
 * N candidates run client-go's elector. The server applies what they sent at any
 * later time or never, also after the candidate gave it up. With PAUSES a
 * candidate may stand still at any point for any time. Time is counted in ticks,
 * the same for all: nobody's clock is slow, as nobody compares two clocks.
 */
#ifndef N
#define N 2
#endif

#define RETRY 1 /* RetryPeriod */
#define RENEW 4 /* RenewDeadline */
#define LEASE 7 /* LeaseDuration */

/* How long an operation may take. Without it, as long as the elector's
 * own context lets it. */
#ifdef NO_DEADLINE
#define D RENEW
#else
#define D ((LEASE - RENEW - RETRY) / 2)
#endif

#define ALL(i) for (i : 0 .. N - 1)

/* What a candidate may send. */
#define RENEWAL 0
#define TAKEOVER 1
#define RELEASE 2

/* The row. That versions never repeat is modelled by what it is for: a
 * compare-and-swap succeeds if the row hasn't changed since it was read. So
 * instead of versions there is one bit for each row that somebody has read or
 * written: is it still the row? */
byte holder = 0; /* 0: released; i + 1: candidate i */

/* Requests that the server may still apply: those whose row is still the row.
 * The others can do nothing any more. Two of one kind from one candidate are
 * alike, so that a bit for each kind is exact. */
typedef Requests { bit sent[3] };
Requests requests[N];

/* A fencing token, as compared with that of the fence row. */
#define NONE 0
#define NEWEST 1
#define STALE 2

/* The elector of each candidate. */
mtype = { following, leading, reading, releasing };
mtype at[N] = following; /* leading, and ending it: reading, releasing */
bit cancelled[N];     /* the work's context was, by whoever runs the elector */
#define believes(i) (at[i] != following && !cancelled[i])
bit observed[N];      /* the row that it last saw is still the row */
byte watched[N];      /* ticks since it last saw the row change */
byte trust[N];        /* ticks until it gives up */
byte lease[N];        /* ticks until the lease of its last renewal ends, counted from sending it */
byte token[N] = NONE; /* of its term */
bit paused[N], stoodStill[N];

/* Its operation. */
mtype = { idle, waiting, answered };
mtype operation[N] = idle;
byte kind[N];         /* what it sent */
byte left[N];         /* ticks until its deadline, plus one; 0: past it */
bit written[N];       /* answered: what it wrote is still the row */
byte granted[N] = NONE; /* answered: the token */

/* Its transaction. */
mtype = { none, working, guarded };
mtype transaction[N] = none;
byte claimed[N] = NONE; /* the token that it began with */

inline read(i) {
	if
	:: observed[i] -> skip
	:: else -> observed[i] = 1; watched[i] = 0
	fi;
	/* Get: a row that another one holds ends the term. */
	if
	:: holder != i + 1 -> token[i] = NONE
	:: else -> skip
	fi
}

inline send(i, what, time) {
	operation[i] = waiting;
	kind[i] = what;
	left[i] = time;
	requests[i].sent[what] = 1
}

/* tryAcquireOrRenew, of leaders and followers alike. Reading is one step: a read
 * that is answered late finds an older row, with which no write succeeds. */
inline attempt(i) {
	read(i);
	if
	:: holder == i + 1 && token[i] != NONE -> send(i, RENEWAL, D + 1)
	:: holder == i + 1 && token[i] == NONE -> send(i, TAKEOVER, D + 1)
	:: holder == 0 -> send(i, TAKEOVER, D + 1)
	:: holder != 0 && holder != i + 1 && watched[i] > LEASE -> send(i, TAKEOVER, D + 1)
	:: else -> skip
	fi
}

inline end(i) {
	at[i] = following;
	cancelled[i] = 0;
	operation[i] = idle;
	granted[i] = NONE;
	token[i] = NONE; /* "stopped leading" */
	trust[i] = 0; lease[i] = 0; left[i] = 0; stoodStill[i] = 0
}

inline success(i) {
	at[i] = leading;
	operation[i] = idle;
	observed[i] = written[i];
	watched[i] = 0;
	trust[i] = RETRY + RENEW;
	lease[i] = LEASE - (D + 1 - left[i]);
	stoodStill[i] = 0;
	if
	:: kind[i] == TAKEOVER -> token[i] = granted[i]
	:: else -> skip
	fi;
	granted[i] = NONE;
	left[i] = 0;
	/* At most one leader among those that run. */
	ALL(j) {
		assert(j == i || !believes(j) || stoodStill[j])
	}
}

proctype Candidate(byte i) {
	byte j;
	do
#ifdef PAUSES
	:: atomic { !paused[i] -> paused[i] = 1; stoodStill[i] = 1 }
	:: atomic { paused[i] -> paused[i] = 0 }
#endif
	:: atomic { !paused[i] && operation[i] == idle && (at[i] == following || at[i] == leading && trust[i] > 0) ->
		attempt(i) }
	:: atomic { !paused[i] && at[i] != releasing && operation[i] == answered ->
		if
#ifndef NO_LATE
		:: left[i] == 0 -> operation[i] = idle; granted[i] = NONE /* late: as good as no answer */
#endif
		:: else -> success(i)
		fi }
	/* No answer in time, an error, or a lost compare-and-swap. */
	:: atomic { !paused[i] && (at[i] == following || at[i] == leading) && operation[i] != idle ->
		operation[i] = idle; granted[i] = NONE; left[i] = 0 }
	/* Somebody cancels the elector, or RenewDeadline is over: it releases. In the
	 * second case the work's context is cancelled afterwards only. */
	:: atomic { !paused[i] && at[i] == leading && operation[i] == idle ->
		at[i] = reading; left[i] = D + 1;
		if
		:: cancelled[i] = 1
		:: trust[i] == 0 -> skip
		fi }
	:: atomic { !paused[i] && at[i] == reading ->
		read(i);
		if
#ifndef NO_OWNER
		:: holder != i + 1 -> end(i)
#endif
#ifndef RELEASE_LATE
		:: holder == i + 1 && trust[i] == 0 -> end(i) /* not renewed for RenewDeadline: left to expire */
#endif
		:: else ->
			at[i] = releasing;
			token[i] = NONE;
			if
			:: lease[i] < D -> send(i, RELEASE, lease[i] + 1)
			:: else -> send(i, RELEASE, D + 1)
			fi
		fi }
	:: atomic { !paused[i] && (at[i] == reading || at[i] == releasing) -> end(i) }
	od
}

/* The work of a leader: any number of transactions, each as slow as it likes. */
proctype Worker(byte i) {
	do
	:: atomic { transaction[i] == none && token[i] != NONE -> transaction[i] = working; claimed[i] = token[i] }
#ifdef NO_GUARD
	:: atomic { transaction[i] == working -> transaction[i] = guarded }
#else
	:: atomic { transaction[i] == working ->
		if
		:: claimed[i] == NEWEST -> transaction[i] = guarded
		:: else -> transaction[i] = none; claimed[i] = NONE /* ErrNotLeader */
		fi }
#endif
	:: atomic { transaction[i] == guarded ->
		/* What commits is of the newest term. */
		assert(claimed[i] == NEWEST);
		transaction[i] = none; claimed[i] = NONE }
	:: atomic { transaction[i] != none -> transaction[i] = none; claimed[i] = NONE } /* rolled back */
	od
}

inline outdate(x) {
	if
	:: x == NEWEST -> x = STALE
	:: else -> skip
	fi
}

/* The server applies one request: the row changes, and nothing that was based on
 * the row before can be applied any more. */
inline apply(i, what) {
	ALL(j) {
		observed[j] = 0; written[j] = 0;
		requests[j].sent[RENEWAL] = 0; requests[j].sent[TAKEOVER] = 0; requests[j].sent[RELEASE] = 0;
		if
		:: what == TAKEOVER -> outdate(token[j]); outdate(granted[j]); outdate(claimed[j])
		:: else -> skip
		fi
	}
	j = 0;
	if
	:: what == RELEASE -> holder = 0
	:: else -> holder = i + 1
	fi;
	if
	:: operation[i] == waiting && kind[i] == what -> /* this one's answer, or an earlier one's that nobody waits for */
		operation[i] = answered;
		written[i] = 1;
		if
		:: what == TAKEOVER -> granted[i] = NEWEST
		:: else -> skip
		fi
	:: true -> skip
	fi
}

#ifdef NO_GUARD
#define pinned 0
#else
/* A guard holds the fence row locked, which every takeover has to write. */
#if N == 2
#define pinned (transaction[0] == guarded || transaction[1] == guarded)
#else
#define pinned (transaction[0] == guarded || transaction[1] == guarded || transaction[2] == guarded)
#endif
#endif

proctype Server() {
	byte i, j;
	do
	:: atomic { select(i : 0 .. N - 1);
		if
		:: requests[i].sent[RENEWAL] -> apply(i, RENEWAL)
		:: requests[i].sent[TAKEOVER] && !pinned -> apply(i, TAKEOVER)
		:: requests[i].sent[RELEASE] -> apply(i, RELEASE)
		:: else -> skip
		fi; i = 0 }
	od
}

/* Time goes on unless a candidate that runs has something to do first. */
#define due(i) (!paused[i] && (left[i] == 1 || at[i] == leading && trust[i] == 0))
#if N == 2
#define nothingDue (!due(0) && !due(1))
#else
#define nothingDue (!due(0) && !due(1) && !due(2))
#endif

inline down(x) {
	if
	:: x > 0 -> x--
	:: else -> skip
	fi
}

proctype Clock() {
	byte i;
	do
	:: atomic { nothingDue ->
		ALL(i) {
			if
			:: watched[i] <= LEASE -> watched[i]++
			:: else -> skip
			fi;
			down(left[i]); down(trust[i]); down(lease[i])
		}
		i = 0 }
	od
}

init {
	byte i;
	atomic {
		ALL(i) { run Candidate(i); run Worker(i) }
		i = 0;
		run Server();
		run Clock()
	}
}
