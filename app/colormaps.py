"""Colormaps as tables of 256 RGB colours: matplotlib's viridis and inferno (CC0), Google's turbo (Apache-2.0)."""

import base64
import zlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ColormapName = Literal["viridis", "inferno", "turbo", "gray"]


def _table(packed: str) -> NDArray[np.uint8]:
    return np.frombuffer(zlib.decompress(base64.b85decode(packed)), np.uint8).reshape(256, 3)


# Base 85 of the deflated bytes: 768 numbers each would be three pages of digits.
COLORMAPS: dict[ColormapName, NDArray[np.uint8]] = {
    "viridis": _table(
        "c-jE~1ONO)0aQc+Rz(C?MFm+#2U<o5Tt*6AMhjj?4PZwOVMh>SM-gO46J<ygXGj)kNEc~H7-~owY)BhzNE~iR9dAe<a7Z9=NFj4bBXme"
        "4bx0+4NG5kkD0oOIc}FUGM=W|rEqg~Ud`B;RMlgOxGJZxge?~NbMKys%H-SYsf<!rkL^^{+JA^|$ghM`sLO+E<K!!p=hCxDyK}3f@MTk"
        "H~h(AY&KS+r_Nr^s6i9Sq<Jxz)|PKrEFiabz@J5h@}Qj0oMi#k+{IaQ1~R*X1Uj5t}0H(HE0Ta7kcjW%74HC~N1UyU?ijWl76Gh&T1V~"
        "sLojxuGAF=mc2XO1ywjxcGCFlvr3YmP5$jxKGEE^dx4Z;mZ+jxBMHEOCx3a*ix>jw^JID|L=4c8)4{jw*PLDS3`5dX6c3jwpPND1DA6e"
        "vT)9jwgVQCV`G7f{rGFjwOSRC4`P8g^nbKjwFYUBZ!V8iH;+RjUtPUB8-h9jg29WjUkVXA&`wBk&Gacj3APXAd`$Al#CyhiyxMYAD4?C"
        "n2R5oiXWPa9-E3DoQWQti65ScAD@UHpokx#h##ScAEJjKqlO@)h9RYeA*O{Qr-dS@gd?egB&vfYtAZu0f+nqjC#``fu7D}8e=4wlEU|t"
        "qvVAVId@r<oF|~U#wt6(Sc{R6rH@J8>xpz9cc00RuJ-l>3ymLUkazegwM89xGz;8&wZc4#zOu}qV!)s8)YEs2%RK;jk#%EZ^Wm?E&T*z"
        "Zy$zov2U}MW)Wy@Y?%v@>BTWrl*Zq8V6&sTHMR&~%+chOUN(NTQTP=C`-fzwTd)JuldNr}}+i`GVt)<uxlLzCA*mDoU-*gl)tJe}D)px"
        "Qa2+Bc=!HmKV)s@yWI+%T}+FS6Y&wcabZ-YL4?D81h%z~3dp-y_A~A;{n$%Hbc);T_Q79Ma+&)#4i1;u+fG8QtR;-{TnK<QV1T8Rz5~>"
        "g5{j<s0wi9P#BH^yVJ+<{<dyA^Ybe{pTeY=t_D"
    ),
    "inferno": _table(
        "c-jE~1ONO000aR51pxsD0RadC0SW>F3<3fU0|F2P0}=!S6a@qq1_T)g1sezj9SH^>3I`$!2P6y#CJhKF4hbs|2`v!{FcJzf6bm#J3pW-"
        "EIT#E)84Nxf3_%<WLmmu89}Gw#3`!#mOe73XCJa$13sWfzRVxcuEelyM3R^J>Trvt?Gzwof31K)1VmS$8I|*bx31vPBW<UyOLJDX^3TQ"
        "<NX-5lcNegO93~NjbYfTMoPYrBQ4s22mZB!3!RS#`f5N=rzZdws;ToP_w5^i4;ZebH{Viay<6>en}Zf6#5X%=p37jA4AZfzKDZy9cJ8E"
        "$eKZgd)MbsKJX9Bp_UZF(JTd>w6l9&LXfY=9qZf*@>!AZvvoYlk6gh$3o=B5I5yX^kUkk0fc3C1{c*Xp<&ql_qDGCuW!@W|}Bvn<-?SD"
        "P*52W1uQyqAOyfEMcWAV5Ti#s4icrE?%oIUac@)t}tA%F<Y@RTC*}*v@=<@G+4JaSGhG-x;9n3H&neiQ@=S<z&cUEI#9zqPsBV<#yw5P"
        "K1|3zOUgh>%Rx!ZLP*X-N6$n?&_zYkMnuy`L)1t@)k;CvOF!65KG{t@+D<&%P&?gGI^I$^-%~f>RW{*PHR4w^<5@H0S~2BZFy>t^=Uy)"
        "8U@hrkE9zq^>treGW+?1uChch@?rJ3OY$NY(A@FY?@o^vVa~<+@9P@S?^LQEbc^LJ37xjG=_I?!hfD`wE68D4<_=OMnhYt9O4Ec)-`HT"
        "wrjtTmZ2>Ox-`jiLzmInKm2K$)?`<n*)od^7%2mGN3{G$o{r3(C}4E(4K{HhQ9tP%XK68x|f{IVAOv>5xg8vD2%`???dydnF(Bl^H5`o"
        "bvs#47s6E&0bU`N=Z*%Qg7TH~7yw_t8D~(?IssL-yB3_1Q`F+f4M`PxRkY^x;<X<686OUGnB(^5|vq>S^)pZSn1K@$Yr<@p<y{ee(2z^"
        "Yw=F_KNiQj`jJH_WG9i`<nUuo%;Qu{QsoVf;;v"
    ),
    "turbo": _table(
        "c-jE~1ONOm5<4;#Lo*mkG#gPh9#}RZUpFLXI45m6Dswt5c{?wFJTitoHH$ttkv}_^KR%p5K%zlIr$I)nLP@bgOSMBzx<paGL{!5>R>wt"
        "I%SBwzMPAcJVb(@u+D2yGMrq(iYvV_5=0|bqM|0~(cJ4=b@JD;{Mt$@~fc8d$_(p~LMu+=Fiu^^4{X~!cLy`VMl>b4N|3I1lKAZkMp8h"
        "+a{W_!kIHmhHsQNXl_%p5dF|YM6vh*&r@+`OTD!J|`yz3{v=_SDDBg5n(#o{2x-yg}{9?RMs&Da~z)f&>$8r0Ak)y){!${5+m7~91d-N"
        "G2&z!>1Y8REMc<GC8-wjAcP9p|zi>8~K_tRm~GCG4js?xZU3p)By8FY%i)@|ZRAlsNQ}JoS!0_KHLIher5>O89_I`F&FQdR6*%S^INc{"
        "BL3WY-RmvY5itx{$g?dUv>UmdHz{_|5kwiQ-uFfi2qKD|4WbmNs|9Zmi|PU{z9DoK%f0Tq5VCi{5+@pI;s0Ptot~x`ZuxpHnjLQxA!%<"
        "_BFiqG`{pS!Sgi3@ifNpG|2BX%k4DH>@?8oG}7rc)aNzV<u%#lHrwJh-QYLh-#6jiH{;tl<=Hsr*E#9cIqTCo?9n>z&pPkTI`PXo^2s{"
        "%$2#@JI`+dl_rW^&zB&24Ir_Re`?xs!wm1B<HvF+R{jN3rtTg_qGybPC{-iPfp)mfQFaDb?{+TTPmMi{~D*liu{f#I6iYEMrCH#aV`+*"
        "|+ej)mMANhD5`E?!mavb+>8un}%^=TONW*75g74l#d@m&+}TN3YB5$#nF>{AcxP!8%&4d_b@=Sd9ZM+@Xd3gSZw;Xw)CKM37D2;4gd+B"
        "pZ<HwM-<2GlbJ(lG_lF9psm1k5W0$|?lNC<DbN1H&Z)!6O2`Ap*Q00=XUnw;cks8v(K!0k0SVtQP^P76GRe0i+WFp%MX}5CNMH0hkT}l"
        "??%s3jvM_0gDL&hzJ6O2Lgcx0)7PodISUE_=g_"
    ),
    "gray": np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1),
}
