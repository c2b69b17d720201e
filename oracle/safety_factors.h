// Inside oracle/: the safety factors of all bounds, each with the reason why it is large enough.
//
// Functions that compute a bound carry a mark. It names the document, the section, the part of the
// section (its bold heading) if it has one, and what is computed:
//   // bounds.md, 2: H_j
//   // bounds.md, 2, Sink: H of the sink
// property_tests/proof_test.cc checks that the marks and the sections of the documents agree.
#pragma once

namespace assay::safety {

// ## Roundings. All of these assume roundoffs u of at most 2^-11.

// One rounding of a quantity that a few earlier roundings have perturbed: u (1 + k u) <= 1.01 u for
// k u <= 0.01.
inline constexpr double one_rounding = 1.01;
// Two roundings, one after the other, of a perturbed quantity: (1 + u)^2 - 1 = 2 u + u^2, which is
// at most 2.01 u.
inline constexpr double two_roundings = 2.01;
// The two errors of an exp whose result is then multiplied. The ulp of the result is at most 2 u,
// and the other factor is perturbed.
inline constexpr double two_roundings_of_exp = 2.02;
// A constant that was rounded has a relative error e. The product with it errs by e (1 + u), and a
// second constant of this kind adds as much.
inline constexpr double folded_constant = 1.001;
// The rounding of fma(S, c, -m c), of a score or of a sink. To express it in natural units it is
// divided by a constant, which has an error of its own.
inline constexpr double fused_argument = 1.002;
// The product of two factors of one_rounding, for a radius that is a sum of such terms and is
// enlarged once more.
inline constexpr double one_rounding_twice = 1.02;
// How far values can lie outside their hull: a factor of the first-order sum of relative errors.
// The products of pairs of these errors add less than a tenth of that sum.
inline constexpr double hull = 1.1;

// What the weights add up to after they were divided by their sum: 1, but for the rounding of the
// weights (at most 2^-4, of e4m3) and of the row sum.
inline constexpr double sum_of_weights = 1.1;
// The roundings relative to the largest value: the division (1 or 2), the correction for a sink,
// and the last addition.
inline constexpr double roundings_of_quotient = 4;

// ## Margins, used as 1 + margin

// The margin of an exponent, for log(1 + d) and for products of two roundoffs. With d = 2 u exp_ulp
// <= 2^-20, |log(1 + d)| <= d (1 + d).
inline constexpr double second_order = 1e-6;
// The margin for evaluating a bound in fp64. A few hundred operations on terms of one sign lose at
// most 1,000 * 2^-53 = 1.2e-13.
inline constexpr double evaluation = 1e-9;
// The margin for a maximum of differences in fp64 and one call of expm1, which lose fewer than
// 1,000 units of 2^-53.
inline constexpr double few_operations = 1e-12;
// The margin for sums that may leave the range. Weights exceed 1, and sums exceed their exact
// value, by no more than this before it matters.
inline constexpr double accumulation = 1e-4;
// The margin that makes a Euclidean norm, or a product of two norms, computed in fp64 an upper
// bound: (D + 2) 2^-53 <= 2^-40 for D < 8,000.
inline constexpr double norm = 0x1p-40;

// ## Limits of the derivation

// A denominator of the quotient below this counts as 0. Then the hull of V is all that is left.
inline constexpr double least_denominator = 0.1;
// e^h - 1 <= h (1 + h) for h <= 1. For larger h expm1 is called, with an argument that is kept in
// the range of fp64.
inline constexpr double small_exponent = 1;
inline constexpr double largest_expm1_argument = 700;
// At this argument sech^2 is below 1e-259, and e^-2x is still a normal number.
inline constexpr double largest_sech_argument = 300;
// exp(-745) is the least positive number of fp64. Smaller arguments need not be computed.
inline constexpr double largest_gap_of_exp = 745;
// e^-104.5 is below half the least subnormal of fp32, so exp gives 0 (see Contract::exp_floor).
inline constexpr double gap_of_zero_weight = 104.5;
// The absolute error of a product that underflows in an fp32 that has subnormals.
inline constexpr double least_subnormal = 0x1p-149;
// An fp32 without subnormals loses every number below this one.
inline constexpr double least_normal = 0x1p-126;
// It may lose a product, and also the sum that takes the product: two losses for every product.
inline constexpr double losses_of_flushed_product = 2;
// gamma(k, u) = k u / (1 - k u) is at most 10 k u up to this k u. Beyond it nothing is claimed.
inline constexpr double largest_sum_of_roundoffs = 0.9;
// If log l is below 0.7, l lies between 1 and 2. There a logarithm may err by an ulp of 1/2,
// instead of an ulp of its result.
inline constexpr double log_near_one = 0.7;
inline constexpr double log_unit_near_one = 0.5;
// The second-order terms of the ordered score, eps^2 N^2 a_j, are smaller than the first-order ones
// where eps N^2 is below this.
inline constexpr double negligible_second_order = 0x1p-7;
// fp32 holds all integers up to this one exactly, so a sum of at most so many quanta is never
// rounded.
inline constexpr double exact_quanta = 0x1p24;
// The roundoff of the coarsest accumulation that keeps such sums exact: fp32, which may truncate or
// round to nearest.
inline constexpr double coarsest_exact_roundoff = 0x1p-23;

// ## The oracle's own arithmetic (fp64)

// The radius of a ball has few bits. Its conversion to fp64 rounds, and so does this product.
inline constexpr double radius_in_fp64 = 0x1p-50;
inline constexpr double unit64 = 0x1p-53;
// exp, log and tanh of the library are assumed to err by up to 64 ulp, which is many times the
// known error of any library.
inline constexpr double library_ulp = 64;
// 64 ulp are at most 128 units of 2^-53. The addition of M takes two more units.
inline constexpr double log_units = 2 * library_ulp + 2;
// The roundings of p and v before they are added: the inverse of the quotient, the product with it,
// and the product with 1 / (1 - p).
inline constexpr double roundings_of_term = 3;
// The other roundings that a value of V meets: keep_scale (two roundings) and p (two); the number
// is twice their sum.
inline constexpr double units_of_weight = 8;
// The library's exp and the roundings beside it, compared with those of the contract term by term.
inline constexpr double library_ulp_and_one = library_ulp + 1;
// gamma(D + 2) of fp64 compared with eps sum |S_k|: 2 sum |S_k| >= sum |q k|, and one_rounding
// covers the rest.
inline constexpr double dot_ratio = 2.1;
// The number of roundings in fp64 where the contract counts one (scale, softcap, biases): fewer
// than 15.
inline constexpr double other_ratio = 15;
// p is a quotient of two sums, each of which errs by e^H. This gives 4 H to first order, and twice
// that covers the second order.
inline constexpr double slack_per_exponent = 8;
// The relative error of a bound whose weights are right to the last bits. It is far more than the
// operations of the bound lose.
inline constexpr double least_slack = 0x1p-40;
// The same where K and V are products with a projection. These products are right to 2^-53 of their
// gauges.
inline constexpr double projected_slack = 0x1p-24;
// A row whose slack is not below this is computed in balls. So is every row under a contract with a
// roundoff close to that of fp64.
inline constexpr double largest_slack = 0x1p-16;
inline constexpr double least_roundoff_of_fp64 = 0x1p-40;
// exp of fp64 underflows below 2^-1022 and keeps multiples of 2^-1074. A weight therefore errs by
// less than this number, even after the division.
inline constexpr double exp_underflow = 0x1p-1018;
// A product of fp64 that underflows errs by at most 2^-1075, and fewer than 2^15 such products are
// added.
inline constexpr double product_underflow = 0x1p-1060;

// The bounds of stages are computed in fp64, and so are their values. Both err by far less than
// this.
inline constexpr double stage = 0x1p-20;
// The error of M - (M - s) in fp64: two roundings of the larger number.
inline constexpr double gap_in_fp64 = 0x1p-52;
// The underflow of exp and of products in merges. Their terms underflow only at the edge of fp64,
// by 2^-1074 and a few roundings.
inline constexpr double merge_underflow = 0x1p-1070;
// The relative error of a merge's bound. exp errs by up to 2^-46 (64 ulp), its argument by 745
// units of 2^-53, and each of a few thousand parts adds a few roundings.
inline constexpr double merge_slack = 0x1p-40;
// A part that lies farther below the maximum than this has a weight too small for any precision
// that is used here.
inline constexpr double largest_distance_in_balls = 1e6;

// The error that remains in the exact tier: keys with a weight below e^-104.5 on both sides of the
// quotient. The bound counts twice that.
inline constexpr double rest_of_both_sums = 2;
inline constexpr double rest_of_kernel = 4;
// The enclosures in fp64 and in balls must meet. Their own evaluation may lose this fraction of the
// sum of their radii.
inline constexpr double meeting = 1e-9;

// ## Gradients (bounds_backward.md)

// The factor with which the bound includes the oracle's own errors of LSE and D. In sums that
// cancel to nothing only these errors are left. This factor keeps verdicts sharp there, and the
// price is a bound that exceeds the oracle's error by as much.
inline constexpr double own_errors_held = 0x1p10;
// The roundings of 1 - p, of its inverse, and of the product with it.
inline constexpr double roundings_of_keep = 3;
// An argument has kappa roundings, and each errs by u (1 + u): this is u (1 + 4 u) for up to four
// of them.
inline constexpr double second_order_units = 4;
// Eigen adds blocks of rows and of keys separately. Their sums meet fewer than four more additions.
inline constexpr double additions_of_blocks = 4;
// The further roundings of dO.v in fp64: the products with dropout and with the difference, and the
// additions between blocks. They are fewer than six.
inline constexpr double roundings_of_values = 6;
// An operation of fp64 rounds once, by 2^-53 of a result that its operands may enlarge a little.
inline constexpr double own_rounding = 2;
// dS = p t is a product of two rounded numbers. Its own roundings are fewer than four.
inline constexpr double own_roundings_of_product = 4;
// The roundings of D in fp64 beside its additions: the product, and the difference of the two O.
inline constexpr double own_roundings_of_delta = 2;
// exp of fp64 errs by up to 64 ulp, which are 128 units of 2^-53 (2^-46). This number is twice
// that, and covers the weight's other roundings.
inline constexpr double library_exp = 0x1p-45;
// tanh of fp64 errs by up to 64 ulp (2^-46), and its argument has a product and a quotient, where
// the slope is at most 1. This number is twice 2^-46.
inline constexpr double library_tanh = 0x1p-45;
// The argument s - L in fp64: two subtractions of numbers that were each rounded once, which are 4
// units of 2^-53.
inline constexpr double argument_in_fp64 = 0x1p-51;
// The products in a sink's terms, the sum D, and the additions of all rows: fewer than sixteen
// roundings more than there are rows.
inline constexpr double roundings_of_sink = 16;
// The precision of balls for rows that fp64 cannot weigh: more than twice that of fp64.
inline constexpr long bits_of_refined_rows = 128;
// exp of fp64 underflows below 2^-1022 and keeps multiples of 2^-1074. This number is far above
// that, and far below any floor of a contract.
inline constexpr double exp_underflow_of_gradients = 0x1p-1000;
// Weights enter the bound of a gradient through two products and a quotient. This gives 2 H to
// first order, and twice that covers the rest.
inline constexpr double slack_per_ratio = 4;
// e^80 is about 2^115. With such a factor the errors of the weights leave the range of fp32, and
// the row is not determined.
inline constexpr double largest_exponent = 80;

// ## Products (bounds_product.md)

// The error of a sum of two doubles times a double: the lower one is rounded by 2^-53, and it is at
// most 2^-52 of the higher one.
inline constexpr double two_doubles = 0x1p-100;
// The relative error of the bound of a product. It is computed in fp64, in chains of fewer than
// 2^17 roundings.
inline constexpr double product_slack = 0x1p-36;
// S_k and T_t are computed in fp64. A sum of L terms errs by L 2^-53 of the sum of their absolute
// values, and L such sums enter a recurrence.
inline constexpr double partial_sums_in_fp64 = 0x1p-52;

// ## Sums in fp32 from above (bounds.md, 9)

inline constexpr double unit32 = 0x1p-24;
// The loss of a chain of n terms: 3.1 n u for its partial sums, n u for the sum of their absolute
// values, and the products of two such losses.
inline constexpr double chain_loss = 4.2;
// 128 absolute values are added in fp32 before their sum is added in fp64, and every chunk has a
// few more roundings.
inline constexpr double moduli_loss = 132;
// The same for a centred sum, whose terms have three roundings each and a rounded weight.
inline constexpr double centred_loss = 140;
// O and v - O are rounded to fp32, which gives two roundings of a number of the size of O.
inline constexpr double centre_loss = 2.1;
// Sums up to this stay in the range of fp32, with a factor of 4 to spare.
inline constexpr double largest_single_sum = 0x1p126;
// Weights above this count as this; their row is vacuous in any case.
inline constexpr double largest_single_weight = 1e30;
// A product of fp32 that underflows errs by at most 2^-149. This number is twice that; four times
// where two factors may underflow.
inline constexpr double single_underflow = 0x1p-148;
inline constexpr double single_underflow_of_centred = 0x1p-147;
// A sum that may lose more than this is not worth taking in fp32.
inline constexpr double largest_single_loss = 0x1p-6;

}  // namespace assay::safety
