"""LLVM IR of the schedule walker and its thread pool.

Layout of a pool (bytes; 64-byte aligned):

    0     i32 lock: 1 while a run uses the workers
    4     i32 stop: workers return when they see it
    8     i64 nanoseconds that a worker spins before it parks
    16    i64 workers ready
    24    i64 offset of the mutex and condition (where there is no futex)
    64    job: function, args, dims, work items, parts, scratch, scratch stride, first item
          (8 bytes each)
    128w  mailbox of worker w = 1, 2, …: i32 ticket, i32 parked, i32 ready, i32 claim; at +64:
          i32 done

To start a job the owner of the lock writes it and increments the tickets of the workers that
take part. A worker claims its part by bringing ``claim`` from the last ticket to this one, does
it, and copies the ticket to ``done``. The owner does its own part, claims and does the parts
whose workers have not come (asleep, or kept off their core by other programs), and waits for
the rest. Only who has claimed a part reads the job, and the owner sees all parts done before it
writes the next, so the job needs no lock.
"""

from __future__ import annotations

MAILBOX = 128
SYNC_BYTES = 256

_FUTEX = """
declare i64 @syscall(i64, ...)

define internal void @park(ptr %pool, ptr %ticket, i32 %seen) {
  %r = call i64 (i64, ...) @syscall(i64 $SYS_FUTEX, ptr %ticket, i32 128, i32 %seen, ptr null)
  ret void
}

define internal void @unpark(ptr %pool, ptr %ticket) {
  %r = call i64 (i64, ...) @syscall(i64 $SYS_FUTEX, ptr %ticket, i32 129, i32 1)
  ret void
}

define void @tact_init(ptr %pool) {
  ret void
}
"""

_PTHREAD = """
declare i32 @pthread_mutex_init(ptr, ptr)
declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @pthread_cond_init(ptr, ptr)
declare i32 @pthread_cond_wait(ptr, ptr)
declare i32 @pthread_cond_broadcast(ptr)

define internal ptr @sync_of(ptr %pool) {
  %at = getelementptr i8, ptr %pool, i64 24
  %offset = load i64, ptr %at
  %sync = getelementptr i8, ptr %pool, i64 %offset
  ret ptr %sync
}

define internal void @park(ptr %pool, ptr %ticket, i32 %seen) {
  %mutex = call ptr @sync_of(ptr %pool)
  %cond = getelementptr i8, ptr %mutex, i64 128
  %l = call i32 @pthread_mutex_lock(ptr %mutex)
  br label %check
check:
  %now = load atomic i32, ptr %ticket seq_cst, align 4
  %same = icmp eq i32 %now, %seen
  br i1 %same, label %wait, label %leave
wait:
  %w = call i32 @pthread_cond_wait(ptr %cond, ptr %mutex)
  br label %check
leave:
  %u = call i32 @pthread_mutex_unlock(ptr %mutex)
  ret void
}

define internal void @unpark(ptr %pool, ptr %ticket) {
  %mutex = call ptr @sync_of(ptr %pool)
  %cond = getelementptr i8, ptr %mutex, i64 128
  %l = call i32 @pthread_mutex_lock(ptr %mutex)
  %w = call i32 @pthread_cond_broadcast(ptr %cond)
  %u = call i32 @pthread_mutex_unlock(ptr %mutex)
  ret void
}

define void @tact_init(ptr %pool) {
  %mutex = call ptr @sync_of(ptr %pool)
  %cond = getelementptr i8, ptr %mutex, i64 128
  %m = call i32 @pthread_mutex_init(ptr %mutex, ptr null)
  %c = call i32 @pthread_cond_init(ptr %cond, ptr null)
  ret void
}
"""

_COMMON = """
declare i32 @clock_gettime(i32, ptr)
declare i32 @sched_yield()
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
$PAUSE_DECLARE

define internal i64 @now() {
  %t = alloca [2 x i64], align 8
  %r = call i32 @clock_gettime(i32 $CLOCK, ptr %t)
  %s = load i64, ptr %t
  %np = getelementptr i8, ptr %t, i64 8
  %n = load i64, ptr %np
  %m = mul i64 %s, 1000000000
  %x = add i64 %m, %n
  ret i64 %x
}

; part %t of the job, with the scratch memory of thread %s
define internal void @slice(ptr %pool, i64 %t, i64 %s) {
  %p0 = getelementptr i8, ptr %pool, i64 64
  %p1 = getelementptr i8, ptr %pool, i64 72
  %p2 = getelementptr i8, ptr %pool, i64 80
  %p3 = getelementptr i8, ptr %pool, i64 88
  %p4 = getelementptr i8, ptr %pool, i64 96
  %p5 = getelementptr i8, ptr %pool, i64 104
  %p6 = getelementptr i8, ptr %pool, i64 112
  %fn = load ptr, ptr %p0
  %args = load ptr, ptr %p1
  %dims = load ptr, ptr %p2
  %work = load i64, ptr %p3
  %parts = load i64, ptr %p4
  %scratch = load ptr, ptr %p5
  %stride = load i64, ptr %p6
  %t1 = add i64 %t, 1
  %p7 = getelementptr i8, ptr %pool, i64 120
  %base = load i64, ptr %p7
  %b0 = mul i64 %work, %t
  %b1 = udiv i64 %b0, %parts
  %begin = add i64 %base, %b1
  %e0 = mul i64 %work, %t1
  %e1 = udiv i64 %e0, %parts
  %end = add i64 %base, %e1
  %off = mul i64 %s, %stride
  %mine = getelementptr i8, ptr %scratch, i64 %off
  call void %fn(ptr %args, ptr %dims, i64 %begin, i64 %end, ptr %mine)
  ret void
}

define void @tact_worker(ptr %pool, i64 %w) {
entry:
  %off = mul i64 %w, 128
  %ticket = getelementptr i8, ptr %pool, i64 %off
  %parked = getelementptr i8, ptr %ticket, i64 4
  %ready = getelementptr i8, ptr %ticket, i64 8
  %claim = getelementptr i8, ptr %ticket, i64 12
  %done = getelementptr i8, ptr %ticket, i64 64
  %stop.at = getelementptr i8, ptr %pool, i64 4
  %spin.at = getelementptr i8, ptr %pool, i64 8
  %spin = load i64, ptr %spin.at
  store atomic i32 1, ptr %ready seq_cst, align 4
  br label %wait
wait:
  %seen = phi i32 [ 0, %entry ], [ %got, %finish ], [ %got, %go ]
  %g0 = load atomic i32, ptr %ticket acquire, align 4
  %new0 = icmp ne i32 %g0, %seen
  br i1 %new0, label %go, label %spin.start
spin.start:
  %t0 = call i64 @now()
  br label %spin.loop
spin.loop:
  %i = phi i32 [ 0, %spin.start ], [ %i1, %spin.back ]
  $PAUSE
  %g1 = load atomic i32, ptr %ticket acquire, align 4
  %new1 = icmp ne i32 %g1, %seen
  br i1 %new1, label %go, label %spin.next
spin.next:
  %i1 = add i32 %i, 1
  %tick = and i32 %i1, 63
  %look = icmp eq i32 %tick, 0
  br i1 %look, label %spin.clock, label %spin.back
spin.clock:
  %t1 = call i64 @now()
  %spent = sub i64 %t1, %t0
  %over = icmp sgt i64 %spent, %spin
  br i1 %over, label %sleep, label %spin.back
spin.back:
  br label %spin.loop
sleep:
  store atomic i32 1, ptr %parked seq_cst, align 4
  br label %sleep.check
sleep.check:
  %g2 = load atomic i32, ptr %ticket seq_cst, align 4
  %new2 = icmp ne i32 %g2, %seen
  br i1 %new2, label %awake, label %sleep.wait
sleep.wait:
  call void @park(ptr %pool, ptr %ticket, i32 %seen)
  br label %sleep.check
awake:
  store atomic i32 0, ptr %parked seq_cst, align 4
  br label %go
go:
  %got = phi i32 [ %g0, %wait ], [ %g1, %spin.loop ], [ %g2, %awake ]
  %before = sub i32 %got, 1
  %cx = cmpxchg ptr %claim, i32 %before, i32 %got seq_cst seq_cst
  %mine = extractvalue { i32, i1 } %cx, 1
  br i1 %mine, label %claimed, label %wait
claimed:
  %stop = load atomic i32, ptr %stop.at acquire, align 4
  %stopping = icmp ne i32 %stop, 0
  br i1 %stopping, label %leave, label %work
work:
  call void @slice(ptr %pool, i64 %w, i64 %w)
  br label %finish
finish:
  store atomic i32 %got, ptr %done release, align 4
  br label %wait
leave:
  store atomic i32 %got, ptr %done release, align 4
  ret void
}

; gives workers 1 … %parts-1 a new ticket and wakes those that sleep
define internal void @summon(ptr %pool, i64 %parts) {
entry:
  br label %give
give:
  %w = phi i64 [ 1, %entry ], [ %w1, %give ]
  %off = mul i64 %w, 128
  %ticket = getelementptr i8, ptr %pool, i64 %off
  %old = atomicrmw add ptr %ticket, i32 1 seq_cst
  %w1 = add i64 %w, 1
  %more = icmp slt i64 %w1, %parts
  br i1 %more, label %give, label %wake
wake:
  %v = phi i64 [ 1, %give ], [ %v1, %wake.next ]
  %voff = mul i64 %v, 128
  %vticket = getelementptr i8, ptr %pool, i64 %voff
  %parked.at = getelementptr i8, ptr %vticket, i64 4
  %parked = load atomic i32, ptr %parked.at seq_cst, align 4
  %asleep = icmp ne i32 %parked, 0
  br i1 %asleep, label %wake.one, label %wake.next
wake.one:
  call void @unpark(ptr %pool, ptr %vticket)
  br label %wake.next
wake.next:
  %v1 = add i64 %v, 1
  %vmore = icmp slt i64 %v1, %parts
  br i1 %vmore, label %wake, label %end
end:
  ret void
}

; waits until parts 1 … %parts-1 are done; with %help, does those that nobody has claimed
define internal void @await(ptr %pool, i64 %parts, i1 %help) {
entry:
  br label %next
next:
  %w = phi i64 [ 1, %entry ], [ %w1, %ok ]
  %off = mul i64 %w, 128
  %ticket.at = getelementptr i8, ptr %pool, i64 %off
  %done.at = getelementptr i8, ptr %ticket.at, i64 64
  %ticket = load atomic i32, ptr %ticket.at monotonic, align 4
  br i1 %help, label %try, label %look
try:
  %claim.at = getelementptr i8, ptr %ticket.at, i64 12
  %before = sub i32 %ticket, 1
  %cx = cmpxchg ptr %claim.at, i32 %before, i32 %ticket seq_cst seq_cst
  %mine = extractvalue { i32, i1 } %cx, 1
  br i1 %mine, label %do, label %look
do:
  call void @slice(ptr %pool, i64 %w, i64 0)
  br label %ok
look:
  %i = phi i32 [ 0, %next ], [ 0, %try ], [ %i1, %spin ], [ 0, %yield ]
  %done = load atomic i32, ptr %done.at acquire, align 4
  %same = icmp eq i32 %done, %ticket
  br i1 %same, label %ok, label %again
again:
  %i1 = add i32 %i, 1
  %long = icmp ugt i32 %i1, 2000
  br i1 %long, label %yield, label %spin
spin:
  $PAUSE
  br label %look
yield:
  %y = call i32 @sched_yield()
  br label %look
ok:
  %w1 = add i64 %w, 1
  %more = icmp slt i64 %w1, %parts
  br i1 %more, label %next, label %end
end:
  ret void
}

; tells all %n workers to return; 0 if a run holds the pool
define i64 @tact_stop(ptr %pool, i64 %n) {
entry:
  %take = cmpxchg ptr %pool, i32 0, i32 1 seq_cst seq_cst
  %took = extractvalue { i32, i1 } %take, 1
  br i1 %took, label %free, label %busy
busy:
  ret i64 0
free:
  %some = icmp sgt i64 %n, 0
  br i1 %some, label %tell, label %end
tell:
  %stop.at = getelementptr i8, ptr %pool, i64 4
  store atomic i32 1, ptr %stop.at seq_cst, align 4
  %parts = add i64 %n, 1
  call void @summon(ptr %pool, i64 %parts)
  call void @await(ptr %pool, i64 %parts, i1 false)
  store atomic i32 0, ptr %stop.at seq_cst, align 4
  br label %end
end:
  store atomic i32 0, ptr %pool release, align 4
  ret i64 1
}

define i64 @tact_run(ptr %pool, ptr %steps, i64 %start, ptr %callback, ptr %user,
                     i64 %threads, ptr %scratch, i64 %stride, ptr %ticks) {
entry:
  %ready.at = getelementptr i8, ptr %pool, i64 16
  %ready = load atomic i64, ptr %ready.at acquire, align 8
  %ready1 = add i64 %ready, 1
  %few = icmp slt i64 %threads, %ready1
  %want = select i1 %few, i64 %threads, i64 %ready1
  %many = icmp sgt i64 %want, 1
  br i1 %many, label %take, label %begin
take:
  %cx = cmpxchg ptr %pool, i32 0, i32 1 seq_cst seq_cst
  %took = extractvalue { i32, i1 } %cx, 1
  br label %begin
begin:
  %mine = phi i1 [ false, %entry ], [ %took, %take ]
  %n = select i1 %mine, i64 %want, i64 1
  %timed = icmp ne ptr %ticks, null
  %j.scratch = getelementptr i8, ptr %pool, i64 104
  %j.stride = getelementptr i8, ptr %pool, i64 112
  br i1 %mine, label %prepare, label %loop
prepare:
  store ptr %scratch, ptr %j.scratch
  store i64 %stride, ptr %j.stride
  br label %loop
loop:
  %i = phi i64 [ %start, %begin ], [ %start, %prepare ], [ %i1, %next ], [ %target, %jump ]
  br i1 %timed, label %tick, label %step
tick:
  %tp = getelementptr i64, ptr %ticks, i64 %i
  %tv = call i64 @now()
  store i64 %tv, ptr %tp
  br label %step
step:
  %off = shl i64 %i, 6
  %rec = getelementptr i8, ptr %steps, i64 %off
  %kind = load i64, ptr %rec
  %w1.at = getelementptr i8, ptr %rec, i64 8
  %w2.at = getelementptr i8, ptr %rec, i64 16
  %w3.at = getelementptr i8, ptr %rec, i64 24
  %w4.at = getelementptr i8, ptr %rec, i64 32
  %w5.at = getelementptr i8, ptr %rec, i64 40
  %w6.at = getelementptr i8, ptr %rec, i64 48
  %w1 = load ptr, ptr %w1.at
  %w2 = load ptr, ptr %w2.at
  %w6 = load i64, ptr %w6.at
  switch i64 %kind, label %bad [
    i64 0, label %end
    i64 1, label %kernel
    i64 2, label %call
    i64 3, label %jump
    i64 4, label %branch
    i64 5, label %copy
  ]
kernel:
  %w3 = load ptr, ptr %w3.at
  %w4 = load ptr, ptr %w4.at
  %g0 = load i64, ptr %w5.at
  %total = load i64, ptr %w4
  %any = icmp sgt i64 %total, 0
  br i1 %any, label %split, label %next
split:
  %w7.at = getelementptr i8, ptr %rec, i64 56
  %w7 = load i64, ptr %w7.at
  %phased = icmp sgt i64 %w7, 0
  %work = select i1 %phased, i64 %w7, i64 %total
  %gpos = icmp sgt i64 %g0, 1
  %grain = select i1 %gpos, i64 %g0, i64 1
  %g2 = shl i64 %grain, 1
  %wide = icmp sge i64 %work, %g2
  %multi = icmp sgt i64 %n, 1
  %par = and i1 %wide, %multi
  br i1 %par, label %parallel, label %alone
alone:
  call void %w1(ptr %w2, ptr %w3, i64 0, i64 %total, ptr %scratch)
  br label %next
parallel:
  %most = udiv i64 %work, %grain
  %fits = icmp ult i64 %most, %n
  %parts = select i1 %fits, i64 %most, i64 %n
  %p0 = getelementptr i8, ptr %pool, i64 64
  %p1 = getelementptr i8, ptr %pool, i64 72
  %p2 = getelementptr i8, ptr %pool, i64 80
  %p3 = getelementptr i8, ptr %pool, i64 88
  %p4 = getelementptr i8, ptr %pool, i64 96
  store ptr %w1, ptr %p0
  store ptr %w2, ptr %p1
  store ptr %w3, ptr %p2
  store i64 %work, ptr %p3
  store i64 %parts, ptr %p4
  %p7 = getelementptr i8, ptr %pool, i64 120
  br label %phase
phase:
  %base = phi i64 [ 0, %parallel ], [ %base1, %phase ]
  store i64 %base, ptr %p7
  call void @summon(ptr %pool, i64 %parts)
  call void @slice(ptr %pool, i64 0, i64 0)
  call void @await(ptr %pool, i64 %parts, i1 true)
  %base1 = add i64 %base, %work
  %unfinished = icmp slt i64 %base1, %total
  br i1 %unfinished, label %phase, label %next
call:
  %status = call i64 %callback(ptr %user, i64 %w6)
  %ok = icmp eq i64 %status, 0
  br i1 %ok, label %next, label %leave
branch:
  %byte = load i8, ptr %w1
  %zero = icmp eq i8 %byte, 0
  br i1 %zero, label %jump, label %next
copy:
  %w4c = load ptr, ptr %w4.at
  %dst = load ptr, ptr %w1
  %src = load ptr, ptr %w2
  %bytes = load i64, ptr %w4c
  %full = icmp sgt i64 %bytes, 0
  br i1 %full, label %copy.do, label %next
copy.do:
  call void @llvm.memcpy.p0.p0.i64(ptr %dst, ptr %src, i64 %bytes, i1 false)
  br label %next
next:
  %i1 = add i64 %i, 1
  br label %loop
jump:
  %target = phi i64 [ %w6, %step ], [ %w6, %branch ]
  br label %loop
bad:
  br label %leave
end:
  br label %leave
leave:
  %result = phi i64 [ %status, %call ], [ -1, %bad ], [ 0, %end ]
  br i1 %mine, label %release, label %out
release:
  store atomic i32 0, ptr %pool release, align 4
  br label %out
out:
  ret i64 %result
}
"""

_LAUNCH = """
; tact_run with its nine arguments in memory: one argument is much quicker to pass from Python
define i64 @tact_launch(ptr %call) {
$LOADS
  %r = call i64 @tact_run(ptr %a0, ptr %a1, i64 %a2, ptr %a3, ptr %a4, i64 %a5, ptr %a6, i64 %a7,
                          ptr %a8)
  ret i64 %r
}
"""
_LAUNCH_LOADS = "\n".join(
    f"  %p{i} = getelementptr i64, ptr %call, i64 {i}\n  %a{i} = load {kind}, ptr %p{i}"
    for i, kind in enumerate("ptr ptr i64 ptr ptr i64 ptr i64 ptr".split())
)

_SYS_FUTEX = {"x86_64": 202, "aarch64": 98, "riscv64": 98}
_PAUSES = {
    "x86_64": ("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"),
    "aarch64": ("declare void @llvm.aarch64.hint(i32)", "call void @llvm.aarch64.hint(i32 1)"),
}


def generate(triple: str, futex: bool | None = None) -> str:
    """The walker's IR for a target.

    Args:
        triple: LLVM target triple.
        futex: Whether to park on futexes; by default where the system has them. Otherwise a
            mutex and a condition variable serve.
    """
    arch = triple.split("-")[0].replace("arm64", "aarch64").replace("amd64", "x86_64")
    linux = "linux" in triple
    if futex is None:
        futex = linux and arch in _SYS_FUTEX
    declare, pause = _PAUSES.get(arch, ("", ""))
    text = (_FUTEX if futex else _PTHREAD) + _COMMON + _LAUNCH
    fill = {
        "$SYS_FUTEX": str(_SYS_FUTEX.get(arch, 0)),
        "$CLOCK": "1" if linux else "6",
        "$PAUSE_DECLARE": declare,
        "$PAUSE": pause,
        "$LOADS": _LAUNCH_LOADS,
    }
    for name, value in fill.items():
        text = text.replace(name, value)
    return text
