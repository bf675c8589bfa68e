#include "textflag.h"

// The program of waiter.go for arm64. System calls take their number in R8 and arguments in R0 to R2, and change R0 only.

// func waiter()
TEXT ·waiter(SB), NOSPLIT|NOFRAME, $0
	MOVD $436, R8        // close_range(3, all, CLOSE_RANGE_CLOEXEC)
	MOVD $3, R0
	MOVD $0xffffffff, R1
	MOVD $4, R2
	SVC
	MOVD $0x800000, R9   // imageAt

wait:
	MOVD $63, R8         // read(ControlFD, image, imageMax)
	MOVD $5, R0
	MOVD R9, R1
	MOVD $0x20000, R2
	SVC
	CMN  $4, R0          // EINTR
	BEQ  wait
	CMP  $32, R0         // the four words
	BGE  start
	MOVD $0, R0          // the warden let go of the sandbox before it was used
	B    leave

start:
	MOVD $49, R8         // chdir(folder)
	MOVD 0(R9), R0
	SVC
	CBNZ R0, fail
	MOVD $221, R8        // execve(path, argv, env)
	MOVD 8(R9), R0
	MOVD 16(R9), R1
	MOVD 24(R9), R2
	SVC

fail:
	MOVD R0, 0(R9)
	MOVD $64, R8         // write(ControlFD, result, 8)
	MOVD $5, R0
	MOVD R9, R1
	MOVD $8, R2
	SVC
	MOVD $1, R0

leave:
	MOVD $94, R8         // exit_group(status)
	SVC
	BRK

// func waiterCode() *[codeSize]byte
TEXT ·waiterCode(SB), NOSPLIT, $0-8
	MOVD $·waiter(SB), R0
	MOVD R0, ret+0(FP)
	RET
