"""Reading inner loops off machine code, in a listing as `cuobjdump -sass` prints it."""

from benchmarks.kernels import sass

LISTING = """
		Function : first
	.headerflags	@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   S2R R0, SR_TID.X ;                   /* 0x00000a00ff017b82 */
                                                                        /* 0x000ff00000000800 */
        /*0010*/                   BSSY B0, 0x80 ;
        /*0020*/              @!P0 BRA 0x50 ;
        /*0030*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0040*/                   BRA 0x70 ;
        /*0050*/                   LDG.E.U16 R4, desc[UR4][R2.64] ;
        /*0060*/                   LDG.E.U16 R5, desc[UR4][R2.64+0x2] ;
        /*0070*/                   BSYNC B0 ;
        /*0080*/              @!P1 BRA 0xb0 ;
        /*0090*/                   FADD R4, R4, R5 ;
        /*00a0*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*00b0*/              @!P2 BRA 0x10 ;
        /*00c0*/                   EXIT ;
        /*00d0*/                   BRA 0xd0;
		Function : second
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0010*/              @!P0 EXIT ;
        /*0020*/                   STL [R1], R4 ;
        /*0030*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*0040*/                   EXIT ;
"""


def test_the_path_of_whole_octets_is_counted():
    code = dict(sass.functions(LISTING))
    assert [len(instructions) for instructions in code.values()] == [14, 5]
    # BSSY, BRA, LDG, BRA, BSYNC, BRA, FADD, STG, BRA: not the element by element path.
    assert sass.inner_loop(code["first"]) == sass.Loop(9, 1, 1)
    assert sass.inner_loop(code["first"]).bytes == 32


def test_a_source_without_kernels_has_no_code():
    assert list(sass.functions("\nFatbin elf code:\n")) == []


def test_code_without_a_loop_is_one_pass():
    code = dict(sass.functions(LISTING))["second"]
    assert sass.inner_loop(code) == sass.Loop(5, 1, 1)
    assert [one.is_local for one in code] == [False, False, True, False, False]


def test_occupancy_is_bound_by_registers_threads_and_shared_memory():
    from benchmarks.kernels.ptxas_report import Usage

    loop = sass.Loop(1, 1, 1)

    def blocks(registers, shared=0, architecture=90):
        return Usage("map", architecture, registers, shared, 0, 0, loop).blocks

    assert [blocks(registers) for registers in (32, 33, 64, 65, 128, 255)] == [8, 6, 4, 3, 2, 1]
    assert blocks(32, 40 << 10) == 5  # 1 KB more is the system's
    assert blocks(32, architecture=75) == 4
    assert blocks(40, architecture=89) == 6
